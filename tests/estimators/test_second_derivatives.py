"""Derivatives of an estimate itself: those of finite differences, or refused with a sentence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

pytestmark = pytest.mark.usefixtures("x64")
D, STEPS, EXACT = 3, 20, bl.CG(tol=1e-12)
GD, SGD = bl.GradientDescent(0.3), bl.SGD(0.2, batch_size=2)
NEWTON = bl.Newton(EXACT)
# Each with what it allows: forward mode over its value, and over its grad.
ALLOWED: dict[str, tuple[Any, bool, bool]] = {
    "Reverse": (bl.Reverse(GD, STEPS), False, False),
    "Reverse, SGD": (bl.Reverse(SGD, STEPS), False, False),
    "Reverse, checkpoints": (bl.Reverse(GD, STEPS, memory="checkpoint"), False, False),
    "Forward": (bl.Forward(GD, STEPS), True, True),
    "OneStep": (bl.OneStep(NEWTON, 8), True, True),
    "Implicit, CG": (bl.Implicit(NEWTON, 8, EXACT), True, True),
    "Implicit, MINRES": (bl.Implicit(NEWTON, 8, bl.MINRES(tol=1e-12)), True, True),
    "Implicit, Dense": (bl.Implicit(NEWTON, 8, bl.Dense()), True, True),
    "ClosedForm": (bl.ClosedForm(), True, True),
}


def setup(rows: int, estimator: Any) -> tuple[Callable, Callable]:
    """Value and grad as functions of hyper; ridge, or a loss that is not quadratic."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((rows, D)), rng.standard_normal(rows)
    V, t = rng.standard_normal((5, D)), rng.standard_normal(5)
    quadratic = isinstance(estimator, bl.ClosedForm)

    def inner(w: Any, h: Any, batch: Any) -> Any:
        z = batch[0] @ w
        fit = (z - batch[1]) ** 2 / 2 if quadratic else jnp.logaddexp(0, -batch[1] * z)
        return jnp.mean(fit) + jnp.sum(jnp.exp(h) * w**2) / 2

    def outer(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    problem = bl.Problem(inner, outer, quadratic=quadratic, evidence="off")
    data = bl.Data(inner=(X, y), outer=(V, t))

    def call(h: Any) -> Any:
        found = bl.hypergradient(problem, estimator, h, jnp.zeros(D), data, jax.random.key(0))[0]
        return found.value, found.grad

    return lambda h: call(h)[0], lambda h: call(h)[1]


def differences(f: Callable, h: Any) -> np.ndarray:
    """``[..., D]``, as Jacobians are."""
    step = 1e-5
    columns = [(f(h + step * e) - f(h - step * e)) / (2 * step) for e in np.eye(D)]
    return np.stack(columns, -1)


QUICK = [("Reverse, SGD", D), ("Reverse", 7), ("Implicit, CG", D), ("ClosedForm", 7)]
EACH = [(name, rows) for name in ALLOWED for rows in (D, 7)]


@pytest.mark.parametrize(
    ("name", "rows"), [c if c in QUICK else pytest.param(*c, marks=pytest.mark.slow) for c in EACH]
)
def test_derivatives_of_an_estimate_are_differences_or_refused(name: str, rows: int) -> None:
    estimator, forward, forward_on_grad = ALLOWED[name]
    value, grad = setup(rows, estimator)
    h = jnp.linspace(-1, 0, D)
    first, second = differences(value, h), differences(grad, h)
    np.testing.assert_allclose(jax.grad(value)(h), first, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(differences(jax.grad(value), h), second, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(jax.jacrev(jax.grad(value))(h), second, rtol=1e-5, atol=1e-8)
    if forward:
        np.testing.assert_allclose(jax.jacfwd(value)(h), first, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(jax.hessian(value)(h), second, rtol=1e-5, atol=1e-8)
    else:
        for refused in (jax.jacfwd(value), jax.hessian(value)):
            with pytest.raises(TypeError, match=r"take jax\.jacrev twice"):
                refused(h)
    np.testing.assert_allclose(jax.jacrev(grad)(h), second, rtol=1e-5, atol=1e-8)
    if forward_on_grad:
        np.testing.assert_allclose(jax.jacfwd(grad)(h), second, rtol=1e-5, atol=1e-8)
