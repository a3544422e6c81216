"""Adaptive inner work against fixed amounts of it: inner gradients until the value is reached.

python -m benchmarks.adaptive

Two penalties are tuned by outer gradient descent on noisy hypergradients. The adaptive run begins
with the least work; the fixed ones have each multiple of it, as four chains and as one chain of
four times the steps. A run has reached the value where its exact value (Newton, float64) comes
within `--excess` of the best for good: it stays there until its budget of gradients is spent.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize

import bilevel as bl
from bilevel.estimators.rebuild import scale_work


class Case(NamedTuple):
    """A problem with two groups of penalties, and an inner step size that suits it."""

    name: str
    problem: bl.Problem
    data: bl.Data
    hyper: jax.Array
    params: jax.Array
    step_size: float
    rates: tuple[float, ...]


def _penalty(w: Any, h: Any) -> Any:
    return jnp.sum(jnp.exp(jnp.repeat(h, len(w) // 2)) * w**2) / 2


def _squares(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def _log_loss(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w)))


def _inner(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda w, h, batch: loss(w, h, batch) + _penalty(w, h)


EVERY = 32
CHAINS, STEPS = 4, 16  # of the least work
STAY = bl.Adaptive(memory=1e9)

RIDGE = bl.Problem(_inner(_squares), _squares, quadratic=True)
LOGISTIC = bl.Problem(_inner(_log_loss), _log_loss)


def _design(seed: int, rows: int = 30, features: int = 10) -> tuple[Any, Any, Any]:
    """Twice the rows, and weights of which the second half is weak: it wants a larger penalty."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(features) * np.repeat([1.0, 0.3], features // 2)
    return rng.standard_normal((2 * rows, features)), w, rng


def _halves(X: Any, y: Any) -> bl.Data:
    X, y, rows = jnp.asarray(X), jnp.asarray(y), len(y) // 2
    return bl.Data((X[:rows], y[:rows]), (X[rows:], y[rows:]))


def ridge(seed: int = 9) -> Case:
    """Ridge regression, 10 features, 30 rows to train and 30 to validate."""
    X, w, rng = _design(seed)
    data, start = _halves(X, X @ w + rng.standard_normal(len(X))), jnp.array([-1.0, -1.5])
    return Case("ridge", RIDGE, data, start, jnp.zeros(10), 0.05, (4.0, 2.0, 1.0))


def logistic(seed: int = 7) -> Case:
    """Logistic regression of the same size."""
    X, w, rng = _design(seed)
    y = np.where(X @ w + 0.5 * rng.logistic(size=len(X)) > 0, 1.0, -1.0)
    start = jnp.array([-0.5, -0.5])
    return Case("logistic", LOGISTIC, _halves(X, y), start, jnp.zeros(10), 0.1, (10.0, 5.0, 2.5))


def exact(case: Case) -> Callable[[Any], np.ndarray]:
    """The value function at many hyperparameters, by Newton's method in float64."""

    def value(h: Any) -> Any:
        def loss(w: Any) -> Any:
            return case.problem.inner(w, h, case.data.inner)

        def newton(_: int, w: Any) -> Any:
            return w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))

        w = jax.lax.fori_loop(0, 12, newton, case.params)
        return case.problem.outer(w, h, case.data.outer)

    mapped = jax.jit(jax.vmap(value))

    def values(hyper: Any) -> np.ndarray:
        """In blocks of one length, so that one program serves histories of any."""
        blank = np.zeros((-len(hyper) % 256, hyper.shape[1]))
        blocks = np.concatenate([hyper, blank]).reshape(-1, 256, hyper.shape[1])
        return np.concatenate([mapped(block) for block in blocks])[: len(hyper)]

    return values


def chains(case: Case, n: int, steps: int) -> Any:
    """Averaged SGD with its derivative, ``n`` chains of it, side by side."""
    one = bl.Forward(bl.SGD(case.step_size, batch_size=4), steps=steps, average=steps // 2)
    return bl.Replicated(one, n) if n > 1 else one


def run(case: Case, estimator: Any, rule: Any, rate: float, budget: int, seed: int) -> Any:
    """Exact hyperparameters ``[steps, 2]``, inner gradients spent before each, work of each."""
    rows, state, spent, key = [], None, 0, jax.random.key(seed)
    while spent < budget:
        result = bl.tune(
            case.problem,
            estimator,
            bl.transform(optax.sgd, learning_rate=rate),
            case.hyper,
            case.params,
            case.data,
            steps=EVERY,
            key=key,
            state=state,
            hooks=[bl.Blocks(EVERY), bl.Record(_record), *([rule] if rule else [])],
        )
        rows.append({name: np.asarray(column) for name, column in result.history.items()})
        state, spent = result.state, spent + rows[-1]["gradients"].sum()
    history = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    gradients = history["gradients"].astype(float)
    work = history.get("work", np.ones(len(gradients)))
    return history["hyper"], np.cumsum(gradients) - gradients, work


def _record(hyper: Any, params: Any, estimate: bl.Estimate) -> dict[str, Any]:
    return {"hyper": hyper}


def reached(excess: np.ndarray, spent: np.ndarray, target: float) -> float:
    """Inner gradients spent until ``excess [steps]`` stays below the target; infinite if never."""
    above = np.flatnonzero(~(excess <= target))
    first = above[-1] + 1 if above.size else 0
    return float(spent[first]) if first < len(spent) else np.inf


def settings(case: Case, multiples: list[int], target: float) -> dict[str, tuple[Any, Any]]:
    """Name -> estimator and rule. ``STAY`` never doubles: it shares the adaptive programs."""
    least = chains(case, CHAINS, STEPS)
    found: dict[str, tuple[Any, Any]] = {
        "adaptive": (least, bl.Adaptive(target=target, most=multiples[-1]))
    }
    for times in multiples:
        found[f"{CHAINS} chains, {times * STEPS} steps"] = scale_work(least, times), STAY
    for times in multiples[::2]:
        steps = CHAINS * times * STEPS
        found[f"1 chain, {steps} steps"] = chains(case, 1, steps), False
    return found


def optimum(case: Case) -> np.ndarray:
    """The best hyperparameters ``[2]`` near the start, from exact values alone."""
    value = exact(case)
    options = {"xatol": 1e-6, "fatol": 1e-12}
    return minimize(
        lambda h: value(h[None])[0], np.asarray(case.hyper), method="Nelder-Mead", options=options
    ).x


def main() -> None:
    """Print a table: median over the seeds of the inner gradients until each excess, by setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--excess", type=float, nargs="+", default=[1e-3, 1e-4])
    parser.add_argument("--budget", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--target", type=float, default=bl.Adaptive().target)
    args = parser.parse_args()
    multiples = [2**k for k in range(args.most.bit_length())]
    with jax.enable_x64(True):
        for case in (ridge(), logistic()):
            value = exact(case)
            best, begun = value(np.stack([optimum(case), case.hyper]))
            print(f"\n{case.name}: best value {best:.6f}, at the start {begun:.6f}")
            print("| work | outer step |", *(f"{e:.0e} |" for e in args.excess), "last work |")
            print("|---|---:|", *("---:|" for _ in args.excess), "---:|")
            for name, (estimator, rule) in settings(case, multiples, args.target).items():
                for rate in case.rates:
                    found, works = [], []
                    for seed in range(args.seeds):
                        hyper, spent, work = run(case, estimator, rule, rate, args.budget, seed)
                        excess = value(hyper) - best
                        found.append([reached(excess, spent, e) for e in args.excess])
                        works.append(work[-1])
                    cells = (f"{x:.0f} |" if x < np.inf else "never |" for x in np.median(found, 0))
                    print(f"| {name} | {rate:g} |", *cells, f"{np.median(works):g} |", flush=True)


if __name__ == "__main__":
    main()
