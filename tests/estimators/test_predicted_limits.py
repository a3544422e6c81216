"""Predictions take no memory that they do not need, and keep to the dtype of the params."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.estimators.call import compiled_step
from bilevel.testing import ridge

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.extended
def test_an_implicit_prediction_takes_no_memory_for_the_derivative() -> None:
    """The derivative is no iterate: 40 params and 40 penalties took 16 GiB of maps of both."""
    rng, d = np.random.default_rng(0), 40
    X, y = jnp.asarray(rng.normal(size=(400, d))), jnp.asarray(rng.normal(size=400))

    def outer(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    def inner(w: Any, h: Any, batch: Any) -> Any:
        return outer(w, h, batch) + jnp.exp(h) @ w**2 / 2

    data = bl.Data((X[:300], y[:300]), (X[300:], y[300:]))
    estimator = bl.Predicted(bl.Implicit(bl.SGD(0.01, 32), 200, average=100))
    start = jnp.zeros(d), jnp.zeros(d), data, jax.random.key(0)
    compiled, _ = compiled_step(bl.Problem(inner, outer), estimator, *start)
    # A system of the size of all second moments, twice, and the Hessian of every row.
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 8 * d**4


def test_single_precision_where_jax_has_double() -> None:
    """The dtype is that of the params, and the numbers are those of float64 to its rounding."""
    case = ridge(seed=0)
    made = []
    for kind in (jnp.float32, jnp.float64):
        at = jax.tree.map(lambda x, k=kind: jnp.asarray(x, k), (case.hyper, case.params, case.data))
        estimator = bl.Predicted(bl.Implicit(bl.SGD(0.05, 4), 40, average=20))
        estimate, _ = bl.hypergradient(
            case.problem, estimator, *at, jax.random.key(0), max_error=np.inf
        )
        made.append(estimate.evidence.standard_error)
    assert made[0].dtype == jnp.float32
    np.testing.assert_allclose(made[0], made[1], rtol=1e-3)
