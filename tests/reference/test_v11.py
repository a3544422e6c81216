"""V11: one weight decay per weight, 7850 of them, fits the validation examples too.

Lorraine, Vicol, Duvenaud, AISTATS 2020, section 5.1: with as many hyperparameters as weights the
validation set is memorised, which shows that the hypergradient is right in every direction. 50
training and 50 validation digits, linear softmax, log-decays from -4, implicit hypergradients by 30
steps of CG at the end of 100 warm steps of heavy ball.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import bilevel as bl

# Measured apart, on MNIST: the best single decay of 11, and 7850 decays after 25 updates.
BEST_SINGLE, AFTER_25 = 1.3049, 0.0033


def cross_entropy(params: Any, batch: Any) -> Any:
    X, y = batch
    logits = X @ params["W"] + params["b"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def outer(params: Any, log_decay: Any, batch: Any) -> Any:
    return cross_entropy(params, batch)


def inner(params: Any, log_decay: Any, batch: Any) -> Any:
    decays = jax.tree.map(lambda w, h: jnp.sum(jnp.exp(h) * w**2) / 2, params, log_decay)
    return cross_entropy(params, batch) + sum(jax.tree.leaves(decays))


PROBLEM = bl.Problem(inner, outer)


def memorise(X: np.ndarray, y: np.ndarray, evaluations: int) -> bl.Result:
    rows = np.random.RandomState(0).permutation(len(y))
    train, validation = rows[:50], rows[50:100]
    data = bl.Data(inner=(X[train], y[train]), outer=(X[validation], y[validation]))
    params = {"W": np.zeros((X.shape[1], 10)), "b": np.zeros(10)}
    log_decay = jax.tree.map(lambda w: np.full(w.shape, -4.0), params)
    solver = bl.SGD(step_size=0.2, momentum=0.9)
    estimator = bl.Implicit(solver, steps=100, linear=bl.CG(tol=1e-10, max_steps=30))

    def accuracy(hyper: Any, params: Any, estimate: Any) -> Any:
        logits = data.outer[0] @ params["W"] + params["b"]
        return {"accuracy": jnp.mean(jnp.argmax(logits, 1) == data.outer[1])}

    return bl.tune(
        PROBLEM, estimator, optax.adam(0.3), log_decay, params, data,
        steps=evaluations, key=jax.random.key(0), record=accuracy,
    )  # fmt: skip


@pytest.mark.slow
def test_mnist(shared_data: Path) -> None:
    with np.load(shared_data / "mnist.npz") as file:
        X, y = file["x_train"].reshape(-1, 784) / 255, file["y_train"].astype(np.int32)
    result = memorise(X, y, evaluations=26)
    values = np.asarray(result.history["value"])
    assert values[0] == pytest.approx(BEST_SINGLE, rel=0.01)
    assert values[25] == pytest.approx(AFTER_25, rel=0.15)
    assert result.history["accuracy"][-1] == 1


def test_digits() -> None:
    X, y = load_digits(return_X_y=True)
    result = memorise(X / 16, y.astype(np.int32), evaluations=12)
    assert result.history["value"][-1] < 0.2 * result.history["value"][0]
    assert result.history["accuracy"][-1] == 1
