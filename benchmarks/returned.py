"""Is the returned point ever worse than the last one? `python -m benchmarks.returned [--seeds 5]`.

Twenty ridge problems: five tables of scikit-learn, one penalty or one for each column, SGD of 10
steps of 4 rows or 100 of 8, whose values are noise and bias. The exact outer value of a point is
that of a dense solve. A point that is returned may be worse than the last of the run by chance, as
they are compared by four estimates each; the spread of the last five records says how far.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

import bilevel as bl

RULES = (bl.outer.Auto(), bl.outer.LBFGS(), bl.outer.LineSearch())
SOLVERS = ((10, 4), (100, 8))
STEPS = 40


def inner(w: Any, h: Any, batch: Any) -> Any:
    """Ridge regression with penalties ``exp(h)``."""
    return outer(w, h, batch) + jnp.sum(jnp.exp(h) * w**2) / 2


def outer(w: Any, h: Any, batch: Any) -> Any:
    """Half the mean squared error."""
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


PROBLEM = bl.Problem(inner, outer, quadratic=True)


def tables() -> list[Any]:
    """Columns and targets."""
    return [
        datasets.load_diabetes(return_X_y=True),
        datasets.load_wine(return_X_y=True),
        datasets.load_breast_cancer(return_X_y=True),
        datasets.make_friedman1(200, 15, noise=1.0, random_state=0),
        datasets.make_regression(80, 60, n_informative=8, noise=30, random_state=0),
    ]


def split(x: Any, y: Any, seed: int) -> bl.Data:
    """Standardised columns and target; a random half of the rows to train on, the other outside."""
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    rows = np.random.default_rng(seed).permutation(len(y))
    train, rest = rows[: len(y) // 2], rows[len(y) // 2 :]
    return bl.Data(inner=(x[train], y[train]), outer=(x[rest], y[rest]))


def exact_value(h: Any, data: bl.Data) -> float:
    """The outer value at the minimiser of the inner loss, by a dense solve."""
    x, y = data.inner
    penalties = np.exp(np.broadcast_to(np.asarray(h, float), x.shape[1]))
    w = np.linalg.solve(x.T @ x / len(x) + np.diag(penalties), x.T @ y / len(x))
    return float(outer(w, h, data.outer))


def worse_by(rule: Any, data: bl.Data, size: tuple[int, ...], how: Any, seed: int) -> Any:
    """How much the returned point lies above the last one, over the last value and the spread."""
    steps, batch = how
    solver = bl.SGD(bl.Relative(0.5), batch_size=batch)
    start, w = np.full(size, -1.0), np.zeros(data.inner[0].shape[1])
    arguments = (PROBLEM, bl.Implicit(solver, steps=steps), rule, start, w, data)
    key = jax.random.key(seed)
    result = bl.tune(*arguments, steps=STEPS, key=key, max_error=np.inf, evidence="off")
    returned, last = (exact_value(h, data) for h in (result.hyper, result.state.hyper))
    spread = float(np.std(result.history["value"][-5:]))
    return (returned - last) / last, (returned - last) / max(spread, 1e-4 * last)


def main() -> None:
    """Print a row for every rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(
        "| rule | runs | returned above the last | worst, % | above by a spread | by two | below |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for rule in RULES:
        rows = np.array(
            [
                worse_by(rule, split(x, y, seed), size, how, seed)
                for x, y in tables()
                for size in ((), x.shape[1:])
                for how in SOLVERS
                for seed in range(args.seeds)
            ]
        )
        share, spreads = rows.T
        print(
            f"| {type(rule).__name__} | {len(rows)} | {np.sum(share > 1e-12)} | "
            f"{100 * share.max():.2f} | {np.sum(spreads > 1)} | {np.sum(spreads > 2)} | "
            f"{np.sum(share < -1e-12)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
