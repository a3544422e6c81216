"""The outer loop over-fits the validation rows as any optimiser does; a second set of them tells.

One decay per weight memorises 50 validation images (case V11). Four sets of rows: training,
validation, held out for early stopping, and test rows that nobody sees.
"""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import logsumexp

import bilevel as bl
from tasks.decays import decays
from tasks.images import images


def losses(params: Any, rows: Any) -> np.ndarray:
    """Cross-entropy of each row, by NumPy, ``[n]``."""
    X, y = rows
    logits = X.astype(float) @ np.asarray(params["W"]) + np.asarray(params["b"])
    return logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]


def error(difference: np.ndarray) -> float:
    """Standard error of the mean, paired over the rows."""
    return float(np.std(difference) / np.sqrt(len(difference)))


def check(data: str, held: int, steps: int) -> None:
    """Of the rows for the test, the first ``held`` are the second validation set."""
    task = decays(data)
    X, y = images(data, train=50, validation=50).test
    second, test = (X[:held], y[:held]), (X[held:], y[held:])
    solver = bl.SGD(step_size=0.2, momentum=0.9)
    estimator = bl.Implicit(solver, steps=100, linear=bl.CG(tol=1e-10, max_steps=30))

    def tune(patience: int) -> bl.Result:
        """One program for both: the patience is a number."""
        stopping = bl.EarlyStopping(task.problem.outer, second, patience)
        return bl.tune(
            task.problem, estimator, optax.adam(0.3), task.hyper, task.params, task.data,
            steps=steps, key=jax.random.key(0), stopping=stopping,
            record=lambda hyper, params, estimate: {"params": params},
        )  # fmt: skip

    whole, stopped = tune(10 * steps), tune(5)
    path = [jax.tree.map(lambda x, k=k: x[k], whole.history["params"]) for k in range(steps)]
    first, last, chosen = path[0], path[-1], stopped.params

    # The loss that is descended falls to the end; the held-out one falls, then rises.
    values, seen = np.asarray(whole.history["value"]), np.asarray(whole.history["held_out"])
    row = int(np.argmin(seen))
    assert values[-1] < values[row] / 4 < values[0] / 20
    rise = losses(last, second) - losses(path[row], second)
    assert rise.mean() > 4 * error(rise)

    # The run that stops returns that row, and its test loss is better than at the end or the start.
    assert bool(stopped.stopped)
    assert len(stopped.history["value"]) == row + 6
    np.testing.assert_array_equal(ravel_pytree(chosen)[0], ravel_pytree(path[row])[0])
    for other in (first, last):
        gain = losses(other, test) - losses(chosen, test)
        assert gain.mean() > 4 * error(gain)

    # Nor is it worse than the best row for the test, beyond what two finite sets can tell.
    best = path[int(np.argmin([losses(params, test).mean() for params in path]))]
    excess, doubt = (losses(chosen, rows) - losses(best, rows) for rows in (test, second))
    assert excess.mean() <= 4 * np.hypot(error(excess), error(doubt))


def test_digits() -> None:
    check("digits", 400, 40)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
def test_mnist() -> None:
    check("mnist", 1000, 40)
