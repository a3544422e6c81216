"""Forward, Reverse and `jax.jacfwd` of a loop written by hand agree on every unrollable solver."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.marks import quick_cases
from tests.solvers import by_hand
from tests.solvers.cases import N, outer_loss, soft_threshold

KEY, STEPS, BATCH = 3, 9, 4


def curved(w: Any, h: Any, batch: Any) -> Any:
    """Logistic regression with a penalty per feature: its third derivatives do not vanish."""
    penalty = jnp.sum(jnp.exp(h[1:]) * w**2) / 2
    return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w))) + penalty


def size(count: Any, h: Any) -> Any:
    """A step size that is a hyperparameter too."""
    return 0.4 * jnp.exp(0.1 * h[0])


def identity(w: Any, h: Any, step: Any) -> Any:
    return w


def data(seed: int) -> bl.Data:
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((N, 3)), np.where(rng.standard_normal(N) > 0, 1.0, -1.0)
    return bl.Data(inner=(X, y), outer=(X[:5], y[:5]))


DATA, HYPER, START = data(0), np.array([-4.0, -2.0, -1.0, -3.0]), np.array([0.3, -0.2, 0.1])
PLAIN = bl.Problem(curved, outer_loss)
SPARSE = bl.Problem(curved, outer_loss, prox=soft_threshold)

# name -> problem, solver, sampling, loop(gradient, prox, hyper, batches)
Loop = Callable[[Any, Any, Any, Any], Any]
ROWS: dict[str, tuple[bl.Problem, Any, str, Loop]] = {
    "fista": (
        SPARSE,
        bl.FISTA(step_size=size, restart=False),
        "iid",
        lambda g, prox, h, b: by_hand.fista(g, prox, START, h, size(0, h), STEPS, N),
    ),
    "nesterov": (
        PLAIN,
        bl.SGD(step_size=size, batch_size=BATCH, momentum=0.7, nesterov=True),
        "iid",
        lambda g, prox, h, b: by_hand.nesterov(g, START, h, size(0, h), 0.7, b),
    ),
    "svrg": (
        SPARSE,
        bl.SVRG(step_size=size, batch_size=BATCH, period=4, sampling="epoch"),
        "epoch",
        lambda g, prox, h, b: by_hand.svrg(g, prox, START, h, size(0, h), b, N, 4),
    ),
    "saga": (
        SPARSE,
        bl.SAGA(step_size=size, batch_size=BATCH),
        "iid",
        lambda g, prox, h, b: by_hand.saga(g, prox, START, h, size(0, h), b, N),
    ),
}


@pytest.mark.usefixtures("x64")
@quick_cases(1, "name", list(ROWS))
def test_equals_the_derivative_of_the_loop(name: str) -> None:
    problem, solver, sampling, loop = ROWS[name]
    drawn = by_hand.batches(DATA.inner, jax.random.key(KEY), STEPS, BATCH, sampling)
    prox = problem.prox or identity
    grad = by_hand.logistic_gradient(*(jnp.asarray(leaf) for leaf in DATA.inner))
    hyper, params = jnp.asarray(HYPER), jnp.asarray(START)
    jacobian, last = jax.jacfwd(lambda h: 2 * (loop(grad, prox, h, drawn),), has_aux=True)(hyper)
    in_params, in_hyper = jax.grad(outer_loss, argnums=(0, 1))(last, hyper, DATA.outer)
    expected = jacobian.T @ in_params + in_hyper
    estimators = bl.Forward(solver, STEPS), bl.Reverse(solver, STEPS)

    @jax.jit
    def both(hyper: Any) -> list[Any]:
        return [
            e.step(problem, hyper, e.init(params, DATA), DATA, jax.random.key(KEY))
            for e in estimators
        ]

    for estimate, lower in both(hyper):
        np.testing.assert_allclose(lower.params, last, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(estimate.grad, expected, rtol=1e-10, atol=1e-12)
    assert (np.abs(expected - np.asarray(in_hyper)) > 1e-6).all()  # every entry is tested
