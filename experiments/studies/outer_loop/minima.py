"""Local minima of the outer loop; the best of several starts.

Forward kinematics of a robot arm (kin8nm, 1000 rows; needs ../shared/data): ridge on sines and
cosines of four directions of the inputs, which are hyperparameters (32 of them) beside the penalty.
One start, directions drawn at random; the same for as many steps as all starts take together; and
the best of all starts by the validation value. All splits and starts move in one program.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from bilevel.spaces import Log
from experiments.studies.base import Result, below, caption, command, figure
from experiments.studies.outer_loop.overfit import deal_rows, stack_splits, standard_error_of
from tasks.datasets.tables import load

WAVES, ROWS = 4, 1000
ADAM = bl.transform(optax.adam, learning_rate=0.1)


@dataclass(frozen=True)
class Sizes:
    """Random splits, start points, outer steps of each."""

    splits: int
    starts: int
    steps: int


FULL = Sizes(20, 8, 150)
QUICK = Sizes(3, 3, 20)


def make_features(h: Any, X: Any) -> Any:
    """Waves along the directions, and a constant: ``X [n, d]`` to ``[n, 2 WAVES + 1]``."""
    angles = X @ h["directions"].T
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), jnp.ones((len(X), 1))], axis=1)


def loss(w: Any, h: Any, batch: Any) -> Any:
    """Half the mean squared error."""
    return jnp.mean((make_features(h, batch[0]) @ w - batch[1]) ** 2) / 2


def ridge(w: Any, h: Any, batch: Any) -> Any:
    """With a penalty."""
    return loss(w, h, batch) + h["penalty"] * jnp.sum(w**2) / 2


SPACE = {"directions": None, "penalty": Log(1e-6, 1.0)}
PROBLEM = bl.Problem(ridge, loss, quadratic=True, space=SPACE)


def descend(inner: Any, outer: Any, test: Any, sizes: Sizes) -> Any:
    """``(values of all starts, values, test errors)``; the last two of the three contestants."""

    def one(inner: Any, outer: Any, test: Any) -> Any:
        data, key = bl.Data(inner, outer), jax.random.key(0)
        shape = (sizes.starts, WAVES, inner[0].shape[-1])
        starts = {
            "directions": jax.random.normal(key, shape),
            "penalty": jnp.full(sizes.starts, 1e-3),
        }
        arguments = PROBLEM, bl.ClosedForm(), ADAM
        there = jnp.zeros(2 * WAVES + 1), data
        found = bl.restarts(*arguments, starts, *there, steps=sizes.steps, key=key)
        first = jax.tree.map(lambda leaf: leaf[0], starts)
        long = bl.tune(*arguments, first, *there, steps=sizes.steps * sizes.starts, key=key)
        runs = (jax.tree.map(lambda leaf: leaf[0], found.runs), long, found.best)
        errors = [2 * loss(run.params, run.state.hyper, test) for run in runs]
        return found.values, jnp.stack([run.estimate.value for run in runs]), jnp.stack(errors)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(inner, outer, test))


def run(sizes: Sizes, seed: int, track: Any) -> Result:
    """The table and its picture; the seeds are those of the splits, `seed` changes nothing."""
    del seed, track
    table = load("uci_kin8nm", None, kind="regression", target=None)
    train, first, second, test = deal_rows(table.X[:ROWS], table.y[:ROWS], sizes.splits)
    values, reached, errors = descend(train, stack_splits(first, second), test, sizes)
    names = "one start", "one start, all steps", f"best of {sizes.starts} starts"
    rows = [
        {
            "outer loop": name,
            "steps": steps,
            "validation loss": float(value.mean()),
            "test error": float(error.mean()),
            "s.e.": standard_error_of(error),
        }
        for name, steps, value, error in zip(
            names,
            np.array([1, sizes.starts, sizes.starts]) * sizes.steps,
            reached.T,
            errors.T,
            strict=True,
        )
    ]
    saved = np.log(errors[:, 1] / errors[:, 2])
    name = "one start against the best of several, all steps: -log ratio of test errors / s.e."
    checks = [below(name, -saved.mean() / standard_error_of(saved), -2)]
    findings = [
        f"One start has {np.exp(saved.mean()):.2f} times the test error of the best of "
        f"{sizes.starts} for the same number of steps in all (geometric mean over splits; log "
        f"ratio {saved.mean():.2f}, s.e. {standard_error_of(saved):.2f}).",
        f"The worst start of a split ends at {np.mean(values.max(1) / values.min(1)):.1f} times "
        "the value of the best, on average.",
    ]
    made, axes = figure(1, 1, 6, 3.8)
    ranks = np.arange(1, sizes.starts + 1)
    axes[0, 0].semilogy(ranks, np.sort(values, axis=1).T, "o-", color="C0", alpha=0.3, ms=3)
    axes[0, 0].set(xlabel="start, by rank", ylabel="validation loss")
    caption(made, f"Each line is one of {sizes.splits} splits.")
    return Result("Local minima of the outer loop", made, {"starts": rows}, findings, checks)


if __name__ == "__main__":
    sys.exit(command("outer_minima", __doc__, run, FULL, QUICK))
