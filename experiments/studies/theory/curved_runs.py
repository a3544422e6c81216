"""Runs of SGD on losses whose Hessian varies, what theory expects of them, and the logarithm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.noise import linearised
from bilevel.noise.moments import limits, rules
from bilevel.noise.moments import run as follow
from bilevel.noise.quadratic import bounds
from experiments.studies.theory.curved_losses import COLUMNS, Case, centre_problem
from experiments.studies.theory.sgd_runs import simulate

DECREASING, DOUBLE = COLUMNS[1], COLUMNS[2]


class Outcome(NamedTuple):
    """One column: squared errors ``[K, 2]`` of x and D that are expected, allowed, and found.

    ``found [R, K / stride, 2]``; ``limit`` of ``t E|D_k - D*|^2``, NaN without a decreasing step;
    ``offset`` of ``t = k + offset``.
    """

    case: Case
    expected: np.ndarray
    bound: np.ndarray
    found: np.ndarray
    stride: int
    limit: float
    offset: float


@jax.jit
def _follow_blocks(process: Any, start: Any, rule: Any, width: Any) -> Any:
    def observe(now: Any) -> Any:
        each = jnp.diagonal(now.second[0, :, 0])
        return jnp.stack([jnp.sum(each[: len(width)]), jnp.sum(each[len(width) :])])

    return follow(process, start, rule, observe)[1]


def study_case(case: Case, runs: int, stride: int, key: Any, slow: bool = False) -> Outcome:
    """Run one column; ``slow`` takes the step ``1 / (2 lambda t)`` instead of its own."""
    n, zero = case.data.inner[0].shape[1], jnp.zeros(case.data.inner[0].shape[1])
    here = linearised.linearise(case.problem, zero, zero, case.data, batch_size=1)
    hessian = jnp.mean(here.process.matrices, 0)[:n, :n]
    kappa, steps, limit = case.smoothness / case.loss.mu, case.steps, np.nan
    offset = 8 * kappa**2
    if slow:  # from the solution: this step forgets its start no faster than the noise
        lowest = float(jnp.linalg.eigvalsh(hessian)[0])
        steps = 1 / (2 * lowest * (np.arange(len(steps)) + offset))
        case = case._replace(problem=centre_problem(case.problem, here.solution, here.derivative))
        here = here._replace(solution=zero, derivative=jnp.zeros_like(here.derivative))
    elif case.name == DECREASING:
        S = limits.inverse_time(here.process, 2 / case.loss.mu)
        limit = float(jnp.trace(S[n:, n:]))
    moments = here.start(zero)
    expected = _follow_blocks(here.process, moments, rules.sgd(steps), zero)
    keys = jax.random.split(key, runs)
    parts = jnp.asarray(steps), zero, case.data, here.solution, here.derivative, 2 * jnp.eye(n)
    found = np.asarray(simulate(case.problem, *parts, keys, stride=stride))
    bound = bound_errors(case, here, steps)
    return Outcome(case, np.asarray(expected), bound, found, stride, limit, offset)


def bound_errors(case: Case, here: linearised.Linearised, steps: np.ndarray) -> np.ndarray:
    """Return what the paper's proposition allows of x and of D, squared, ``[K, 2]``."""
    n = len(here.solution)
    noise = here.process.matrices @ here.process.fixed_point() - here.process.offsets
    of_x, of_D = (jnp.mean(jnp.sum(part**2, 1)) for part in (noise[:, :n], noise[:, n:]))
    mu, L, start = case.loss.mu, case.smoothness, jnp.sum(here.solution**2)
    x = bounds.path(steps, mu, L, of_x, start)
    before = jnp.sqrt(jnp.concatenate([start[None], x[:-1]]))
    errors = case.loss.lipschitz * (1 + case.size) * before
    D = bounds.path(steps, mu, L, of_D, jnp.sum(here.derivative**2), errors)
    return np.stack([x, D], 1)


def fit_log_share(outcome: Outcome) -> tuple[float, float, float]:
    """Return the share of ``log(t)^2`` in ``t E|D_k - D*|^2`` at the end: found, s.e., expected.

    Over the last decade of ``t``, evenly in ``log t``, least squares on ``a + b (log t /
    log T)^2``, run by run; the share is ``b / (a + b)``, with the standard error of that ratio.
    """
    count = outcome.found.shape[1]
    k = outcome.stride * (np.arange(count) + 1)
    t = k + outcome.offset
    first = int(np.argmax(t >= t[-1] / 10))
    grid = np.unique(np.geomspace(t[first], t[-1], 60).searchsorted(t, "right"), return_index=True)[
        1
    ]
    at = grid[(grid >= first)]
    design = np.stack([np.ones(len(at)), (np.log(t[at]) / np.log(t[-1])) ** 2], 1)
    fit = np.linalg.pinv(design)
    a, b = fit @ (t[at] * outcome.found[:, at, 1]).T
    share = b.mean() / (a + b).mean()
    error = (b - share * (a + b)).std(ddof=1) / len(b) ** 0.5 / (a + b).mean()
    c, d = fit @ (t[at] * outcome.expected[k[at] - 1, 1])
    return float(share), float(error), float(d / (c + d))


def measure_growth(outcome: Outcome, draws: int = 200) -> dict[str, float]:
    """Return how ``(E|D_k - D*|^2 / E|x_k - x*|^2)^{1/2}`` grows while both fall geometrically.

    From ``k`` to ``2 k``, the latter where the expected ``E|x_k - x*|^2`` is 1e-20 of its start;
    the standard error of the found one is that of resampled runs. ``increments`` is what it gains
    in the second half of these steps over what it gains in the first: 1 if it grows like k.
    """
    k = outcome.stride * (np.arange(outcome.found.shape[1]) + 1)
    expected = outcome.expected[k - 1]
    last = int(np.argmax(expected[:, 0] < 1e-20 * outcome.expected[0, 0]))
    if not last:
        raise ValueError(
            f"measure_growth: {len(outcome.expected)} steps do not reduce the squared error by "
            "1e-20. Take more steps."
        )
    at = [(last + 1) // 2 - 1, (3 * (last + 1)) // 4 - 1, last]

    def compare(mean: np.ndarray) -> np.ndarray:
        return np.sqrt(mean[at, 1] / mean[at, 0])

    def grow(mean: np.ndarray) -> float:
        ratio = compare(mean)
        return float(ratio[2] / ratio[0])

    rng, runs = np.random.default_rng(0), len(outcome.found)
    again = [grow(outcome.found[rng.integers(runs, size=runs)].mean(0)) for _ in range(draws)]
    return {
        "from k": float(k[at[0]]),
        "to k": float(k[at[2]]),
        "growth": grow(outcome.found.mean(0)),
        "s.e.": float(np.std(again)),
        "linearised": grow(expected),
        "increments": float(np.divide(*np.diff(compare(outcome.found.mean(0)))[::-1])),
    }
