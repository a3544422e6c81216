"""Decays of every weight: the losses by hand, also of the flax network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tasks.datasets.images import images
from tasks.weight_decay import weight_decay


def test_inner_loss_of_the_network_by_hand(x64) -> None:
    task = weight_decay(hidden=7, train=20, validation=10)
    rng = np.random.RandomState(0)
    params, hyper = (
        jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), task.params) for _ in range(2)
    )
    first, second = params["layers"][0], params["layers"][2]
    X, y = map(np.asarray, task.data.inner)
    hidden = np.maximum(X @ first["kernel"] + first["bias"], 0)
    odds = np.exp(hidden @ second["kernel"] + second["bias"])
    shares = odds / odds.sum(1, keepdims=True)
    expected = log_loss(y, shares, labels=range(10))
    expected += sum(
        float(np.sum(np.exp(h) * w**2)) / 2
        for h, w in zip(jax.tree.leaves(hyper), jax.tree.leaves(params), strict=True)
    )
    assert task.problem.inner(params, hyper, task.data.inner) == pytest.approx(expected)


@pytest.mark.extended
def test_single_decay_is_that_of_scikit_learn() -> None:
    """One decay for all weights and intercepts is ridge's C on rows with a column of ones."""
    task = weight_decay(fit_steps=3000)
    parts = images("digits", train=50, validation=50)
    (name, found), *_ = task.baselines().items()
    X, held, tested = (
        np.concatenate([X, np.ones((len(X), 1))], axis=1)
        for X, _ in (parts.train, parts.validation, parts.test)
    )
    rows = []
    for log in np.linspace(-8, 2, 11):
        model = LogisticRegression(C=np.exp(-log) / 50, fit_intercept=False, max_iter=10_000)
        model.fit(X, parts.train[1])
        loss = log_loss(parts.validation[1], model.predict_proba(held), labels=range(10))
        rows.append((loss, 1 - model.score(tested, parts.test[1])))
    loss, error = min(rows)
    assert "best of 11" in name
    assert found["validation_loss"] == pytest.approx(loss, rel=0.01)
    assert found["test_error"] == pytest.approx(error, abs=0.01)
