r"""What the studies of open questions share: runs over many keys, and what a run costs.

Cost is counted in gradients of single examples. Every call of ``evidence.counts``, be it a
gradient, a Hessian product, a pushed tangent or a pulled cotangent, counts the examples that it
looks at:

    SGD, SAGA: B a step      SVRG: 2 B + n / period a step      full batch: n a step

Beside these: a full pass (n) for the cross term of `Implicit`, which reads all data. Left out,
for all alike: passes that serve the evidence alone (the final residual of the inner problem and of
the linear system), and the outer gradient. To count second-order calls twice, as a flop count
would, multiplies every cost at one hyperparameter by 3/2, that of cross-sampling by 4/3.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import bilevel as bl
from experiments.studies.open_questions.problems import Setting

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8B4513")
MARKERS = "osD^vPX*"


class Sample(NamedTuple):
    """Hypergradients of independent runs, ``[runs, p]``, and the mean cost of one."""

    grads: np.ndarray
    cost: float


@partial(jax.jit, static_argnames="problem")
def _estimate_many(
    problem: bl.Problem, estimator: Any, hyper: Any, params: Any, data: Any, keys: Any
) -> Any:
    def one(key: Any) -> Any:
        estimate, _ = bl.hypergradient(problem, estimator, hyper, params, data, key)
        return estimate.grad, estimate.evidence.counts

    return jax.vmap(one)(keys)


def sample(at: Setting, estimator: Any, runs: int, seed: int) -> Sample:
    """``runs`` independent hypergradients, computed side by side."""
    keys = jax.random.split(jax.random.key(seed), runs)
    grads, counts = _estimate_many(at.problem, estimator, at.hyper, at.params, at.data, keys)
    mean = bl.Counts(*(float(np.mean(x)) for x in counts))
    return Sample(np.asarray(grads).reshape(runs, -1), price(estimator, mean, at.examples))


def price(estimator: Any, counts: bl.Counts, n: int) -> float:
    """``counts`` of one run in gradients of single examples, see the head of this file."""
    if isinstance(estimator, bl.Richardson):
        one = bl.Counts(*(c / 2 for c in counts))
        return 2 * price(estimator.estimator, one, n)
    if isinstance(estimator, bl.Replicated):
        one = bl.Counts(*(c / estimator.n for c in counts))
        return estimator.n * price(estimator.estimator, one, n)
    step = count_examples_per_step(estimator.solver, n)
    cost = (counts.gradients - 1 + counts.jvps + counts.vjps) * step
    if isinstance(estimator, bl.Implicit):
        products = counts.hvps - 1  # the last one serves the residual
        linear = estimator.linear
        cost += products * (linear.batch_size if isinstance(linear, bl.SGDLinear) else n) + n
    return float(cost)


def count_examples_per_step(solver: Any, n: int) -> float:
    """How many examples one step of the solver looks at."""
    batch = getattr(solver, "batch_size", None) or n
    if isinstance(solver, bl.SVRG):
        return 2 * batch + n / (solver.period or math.ceil(2 * n / batch))
    return batch


class Accuracy(NamedTuple):
    """Relative to ``|exact|``: mean squared error, bias per component, each with standard error."""

    mse: float
    mse_error: float
    bias: np.ndarray
    bias_error: np.ndarray
    sd: float

    @property
    def resolved(self) -> float:
        """The largest ``|bias| / standard error`` of all components."""
        return float(np.max(np.abs(self.bias) / self.bias_error))


def assess(grads: np.ndarray, exact: np.ndarray) -> Accuracy:
    """Of independent hypergradients ``[runs, p]`` against the exact one, ``[p]``."""
    size, runs = np.linalg.norm(exact), len(grads)
    errors = (grads - exact) / size
    squares = (errors**2).sum(1)
    return Accuracy(
        float(squares.mean()),
        float(squares.std(ddof=1) / runs**0.5),
        errors.mean(0),
        errors.std(0, ddof=1) / runs**0.5,
        float(np.sqrt(errors.var(0, ddof=1).sum())),
    )


class Chosen(NamedTuple):
    """The best of several settings: its accuracy on fresh runs, its cost, which one it is."""

    accuracy: Accuracy
    cost: float
    setting: float


def find_best(
    at: Setting, make: Callable[[float], Any], settings: Any, runs: int, seed: int
) -> Chosen | None:
    """The setting of least error on ``runs`` runs, measured on as many others; ``None`` if none is.

    The second batch of runs keeps the choice from flattering its result.
    """
    found = None
    for setting in settings:
        grads = sample(at, make(setting), runs, seed).grads
        mse = assess(grads, at.exact).mse
        if np.isfinite(mse) and (found is None or mse < found[0]):
            found = mse, setting
    if found is None:
        return None
    fresh = sample(at, make(found[1]), runs, seed + 1)
    return Chosen(assess(fresh.grads, at.exact), fresh.cost, float(found[1]))


def compare_errors(over: Accuracy, under: Accuracy) -> tuple[float, float]:
    """The ratio of two mean squared errors with its standard error (delta method)."""
    value = over.mse / under.mse
    return value, value * math.hypot(over.mse_error / over.mse, under.mse_error / under.mse)


def fit_slope(x: Any, y: Any) -> float:
    """Least-squares slope of ``log y`` against ``log x``."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def plot(
    ax: Any,
    j: int,
    rows: Any,
    x: str,
    y: str,
    error: str | None = None,
    times: int = 2,
    **style: Any,
) -> None:
    """Column ``y`` of the rows against ``x`` in the j-th style, with bars of ``times error``."""
    bars = None if error is None else [times * row[error] for row in rows]
    style = {"marker": MARKERS[j], "color": COLOURS[j], "markersize": 5, "capsize": 2, **style}
    ax.errorbar([row[x] for row in rows], [row[y] for row in rows], yerr=bars, **style)


def show(value: float, error: float) -> str:
    """``value +- error`` as people write it."""
    return f"{value:.3g} ± {error:.1g}"


def judge_difference(
    value: float, error: float, better: str, worse: str, against: float = 1.0
) -> str:
    """``better`` or ``worse`` where value lies four standard errors below or above, else a tie."""
    if abs(value - against) < 4 * error:
        return "not told apart from"
    return better if value < against else worse
