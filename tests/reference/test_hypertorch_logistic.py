"""The validation losses that hypertorch's logistic-regression example prints.

Source: prolearner/hypertorch, examples/logistic_regression.ipynb: cold starts, 100 gradient steps,
reverse mode through the last 10, SGD with momentum on the penalties, clamped at 1e-8.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.model_selection import train_test_split

import bilevel as bl

pytestmark = pytest.mark.extended

PUBLISHED = {
    0: 0.5743989944,
    10: 0.5337678790,
    20: 0.3615218699,
    30: 0.3225042522,
    100: 0.2853544056,
    190: 0.2816892266,
}


def bce(w: Any, batch: Any) -> Any:
    x, y = batch
    logits = x @ w
    return jnp.mean(jax.nn.softplus(logits) - logits * y)


def inner(w: Any, penalties: Any, batch: Any) -> Any:
    return bce(w, batch) + 0.5 * jnp.sum(penalties * w**2)


def outer(w: Any, penalties: Any, batch: Any) -> Any:
    return bce(w, batch)


def clamp(lowest: float) -> optax.GradientTransformation:
    """Project the updated parameters onto [lowest, inf)."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        return jnp.maximum(params + updates, lowest) - params, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@pytest.fixture(scope="module")
def data() -> bl.Data:
    # The example draws from numpy's global generator, which this module seeds and then restores.
    before = np.random.get_state()
    try:
        np.random.seed(1)
        n, d = 1000, 20
        w_oracle = np.random.randn(d)
        x = np.random.randn(n, d)
        y = (x @ w_oracle + 0.1 * np.random.randn(n) > 0).astype(float)
        x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.5)
    finally:
        np.random.set_state(before)
    return bl.Data(inner=(x_train, y_train), outer=(x_val, y_val))


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 2e-6), (False, 1e-4)])
def test_published_validation_losses(data: bl.Data, x64: bool, tolerance: float) -> None:
    estimator = bl.Reverse(bl.GradientDescent(step_size=0.1), steps=100, truncate=10)
    tx = optax.chain(optax.sgd(1.0, momentum=0.9), clamp(1e-8))
    with jax.enable_x64(x64):
        result = bl.tune(
            bl.Problem(inner, outer),
            estimator,
            tx,
            np.ones(20),
            np.zeros(20),
            data,
            steps=191,
            key=jax.random.key(0),
            warm_start=False,
        )
        values = np.asarray(result.history["value"])[list(PUBLISHED)]
    assert not result.diverged
    np.testing.assert_allclose(values, list(PUBLISHED.values()), rtol=0, atol=tolerance)
