"""The outer loop over-fits the validation rows as any optimiser does; a second set of them tells.

One decay per weight memorises 50 validation images. Four sets of rows: training, validation,
held out for early stopping, and test rows that nobody sees.
"""

from typing import Any

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.special import logsumexp

import bilevel as bl
from tasks.datasets.images import images
from tests.tasks.experiment import job_of

STEPS, PATIENCE = 40, 5


def losses(params: Any, rows: Any) -> np.ndarray:
    """Cross-entropy of each row, by NumPy, ``[n]``."""
    X, y = (np.asarray(part) for part in rows)
    logits = X.astype(float) @ np.asarray(params["W"]) + np.asarray(params["b"])
    return logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]


def assert_clear(difference: np.ndarray) -> None:
    """The mean over the rows, which are paired, is above 0 by more than four standard errors."""
    assert difference.mean() > 4 * difference.std() / np.sqrt(len(difference))


def check(experiment: str, data: str, held: int) -> None:
    """Of the rows left for the test, the first ``held`` are the second validation set."""
    job = job_of(experiment)
    task, (X, y) = job.task, images(data, train=50, validation=50).test
    second, test = (X[:held], y[:held]), (X[held:], y[held:])

    def record(hyper: Any, params: Any, estimate: Any) -> Any:
        return {"params": params}

    def tune(patience: int) -> bl.Result:
        """One program for both: the patience is a number."""
        stopping = bl.EarlyStopping(task.problem.outer, second, patience)
        hooks = [bl.Record(record), stopping]
        return job.tune(task.data, steps=STEPS, every=STEPS, key=job.key, hooks=hooks)

    whole, stopped = tune(10 * STEPS), tune(PATIENCE)
    path = [jax.tree.map(lambda x, k=k: x[k], whole.history["params"]) for k in range(STEPS)]
    values, seen = (np.asarray(whole.history[name]) for name in ("value", "held_out"))
    row, chosen = int(np.argmin(seen)), stopped.params

    # The loss that is descended falls on and on, until the validation rows are memorised.
    assert values[-1] < values[row] / 4 < values[0] / 20
    assert losses(path[-1], task.data.outer).max() < np.log(2)  # each probability above one half
    # The held-out loss has risen by then; the run that stops returns the row where it was lowest.
    assert_clear(losses(path[-1], second) - losses(path[row], second))
    assert bool(stopped.stopped)
    assert len(stopped.history["value"]) == row + 1 + PATIENCE
    np.testing.assert_array_equal(ravel_pytree(chosen)[0], ravel_pytree(path[row])[0])

    # On rows that nobody saw that is better than where the run began, and than where it ends ...
    for other in (path[0], path[-1]):
        assert_clear(losses(other, test) - losses(chosen, test))
    # ... and no worse than the best row of all, beyond what two finite sets can tell apart.
    best = path[int(np.argmin([losses(params, test).mean() for params in path]))]
    excess, doubt = (losses(chosen, rows) - losses(best, rows) for rows in (test, second))
    error = np.sqrt(excess.var() / len(excess) + doubt.var() / len(doubt))
    assert excess.mean() <= 4 * error  # false alarm: 3e-5


@pytest.mark.extended
def test_digits() -> None:
    check("decays", "digits", 400)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_data")
def test_mnist() -> None:
    check("decays_paper", "mnist", 1000)
