"""The outer loop over-fits its validation rows; early stopping on a second part of them.

Diabetes, squares and products, one ridge penalty per column (64), in `Log(1e-5, 1e4)`. Validation
rows are all given to the outer loop, which is run to the end; or half of them are, and the other
half says when to stop. Either way the model is then fitted to training and validation rows together
with the penalties found, and judged by the test rows. All splits move in one program.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import bilevel as bl
from bilevel.spaces import Log
from experiments.studies.base import Result, below, caption, command, figure

START = 0.1  # the penalty of every column
ADAM = bl.transform(optax.adam, learning_rate=0.1)


@dataclass(frozen=True)
class Sizes:
    """Random splits; outer steps at which the run without an end is judged; patience."""

    splits: int
    steps: tuple[int, ...]
    patience: int = 20


FULL = Sizes(20, (25, 50, 100, 200, 400))
QUICK = Sizes(6, (10, 20, 40))


def loss(w: Any, h: Any, batch: Any) -> Any:
    """Half the mean squared error of a linear model."""
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def ridge(w: Any, h: Any, batch: Any) -> Any:
    """With one penalty per column."""
    return loss(w, h, batch) + jnp.sum(h * w**2) / 2


PROBLEM = bl.Problem(ridge, loss, quadratic=True, space=Log(1e-5, 1e4))


def load_columns() -> tuple[np.ndarray, np.ndarray]:
    """Inputs, squares and products; the square of a two-valued input is left out."""
    table: Any = load_diabetes()
    X, y = table.data, table.target
    X = (X - X.mean(0)) / X.std(0)
    pairs = [(i, j) for i in range(10) for j in range(i, 10) if len(set(X[:, i])) > 2 or i != j]
    return np.concatenate([X, np.stack([X[:, i] * X[:, j] for i, j in pairs], 1)], 1), y


def deal_rows(X: np.ndarray, y: np.ndarray, splits: int) -> list[Any]:
    """Training, two parts of validation, test: ``(X [splits, n, d], y [splits, n])`` each."""
    n = len(y)
    ends = np.cumsum([int(0.4 * n), int(0.15 * n), int(0.15 * n)])
    parts: list[list[Any]] = [[], [], [], []]
    for seed in range(splits):
        rows = np.split(np.random.RandomState(seed).permutation(n), ends)
        centre, spread = X[rows[0]].mean(0), X[rows[0]].std(0)
        middle, unit = y[rows[0]].mean(), y[rows[0]].std()
        for part, own in zip(parts, rows, strict=True):
            part.append(((X[own] - centre) / spread, (y[own] - middle) / unit))
    return [tuple(np.stack(arrays) for arrays in zip(*part, strict=True)) for part in parts]


def stack_splits(*parts: Any) -> Any:
    """Their rows in one batch."""
    return tuple(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))


def descend(inner: Any, outer: Any, held: Any, steps: int, patience: int) -> Any:
    """``(best hyper, hyper at every step, steps taken)``, all splits at once."""
    d = inner[0].shape[-1]

    def one(inner: Any, outer: Any, held: Any, patience: Any) -> Any:
        found = bl.tune(
            PROBLEM,
            bl.ClosedForm(),
            ADAM,
            jnp.full(d, START),
            jnp.zeros(d),
            bl.Data(inner, outer),
            steps=steps,
            key=jax.random.key(0),
            hooks=[
                bl.EarlyStopping(loss, held, patience),
                bl.Record(lambda h, w, estimate: {"hyper": h}),
            ],
        )
        return found.hyper, found.history["hyper"], found.state.step

    run = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))
    return jax.tree.map(np.asarray, run(inner, outer, held, jnp.asarray(patience)))


def measure_errors(hyper: np.ndarray, development: Any, test: Any) -> np.ndarray:
    """Test errors ``[splits]`` of ridge fits to all rows but those of the test, by NumPy."""
    errors = []
    for h, X, y, Xt, yt in zip(hyper, *development, *test, strict=True):
        centre, middle = X.mean(0), y.mean()
        gram = (X - centre).T @ (X - centre) / len(y) + np.diag(h)
        w = np.linalg.solve(gram, (X - centre).T @ (y - middle) / len(y))
        errors.append(np.mean(((Xt - centre) @ w + middle - yt) ** 2))
    return np.array(errors)


def standard_error_of(x: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(np.std(x, ddof=1) / len(x) ** 0.5)


def run(sizes: Sizes, seed: int, track: Any) -> Result:
    """The table and its picture; the seeds are those of the splits, `seed` changes nothing."""
    del seed, track
    train, first, second, test = deal_rows(*load_columns(), sizes.splits)
    development, last = stack_splits(train, first, second), sizes.steps[-1]
    stopped, _, taken = descend(train, first, second, last, sizes.patience)
    half = descend(train, first, second, last, last)[1][:, -1]
    path = descend(train, stack_splits(first, second), second, last, last)[1]
    best = measure_errors(stopped, development, test)
    every = [measure_errors(path[:, n - 1], development, test) for n in sizes.steps]
    found = {("no tuning", 0.0): measure_errors(np.full_like(stopped, START), development, test)}
    found |= {("all rows", float(n)): e for n, e in zip(sizes.steps, every, strict=True)}
    found |= {("half of them", float(last)): measure_errors(half, development, test)}
    found |= {("half, early stopping", float(taken.mean())): best}
    rows = [
        {
            "outer loop": name,
            "steps": steps,
            "test error": float(errors.mean()),
            "above early stopping, %": float(100 * (errors / best - 1).mean()),
            "s.e., %": 100 * standard_error_of(errors / best - 1),
        }
        for (name, steps), errors in found.items()
    ]
    gains = {row["outer loop"]: row for row in rows}
    checks, findings = [], []
    for name in ("all rows", "half of them"):
        gain, error = gains[name]["above early stopping, %"], gains[name]["s.e., %"]
        checks.append(below(f"{name}, {last} steps: -gain / s.e.", -gain / error, -2))
        findings.append(
            f"After {last} steps on {name} the test error is {gain:.1f} % above that of early "
            f"stopping (s.e. {error:.1f} %)."
        )
    made, axes = figure(1, 1, 6, 3.8)
    ax = axes[0, 0]
    ax.errorbar(
        sizes.steps,
        [e.mean() for e in every],
        [standard_error_of(e) for e in every],
        label="all rows",
    )
    ax.axhline(best.mean(), color="C1", label="early stopping on half of them")
    ax.set(xscale="log", xlabel="outer steps", ylabel="test error")
    ax.legend(fontsize=8)
    caption(made, f"{sizes.splits} splits; bars: one standard error.")
    return Result("Over-fitting the validation rows", made, {"splits": rows}, findings, checks)


if __name__ == "__main__":
    sys.exit(command("outer_overfit", __doc__, run, FULL, QUICK))
