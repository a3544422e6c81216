"""The curse of unrolling, in closed form (Scieur, Gidel, Bertrand, Pedregosa, NeurIPS 2022).

``f = theta x'Ax / 2 - b'x``, ``b = diag(A)``, theta = 1, so x* = 1 and J* = dx*/dtheta = -1;
from x_0 = 0, with ``rho = 1 - h lambda`` per coordinate:

    x_t = 1 - rho^t,    J_t - J* = t rho^(t-1) h lambda + rho^t
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

pytestmark = pytest.mark.extended

D = 100
SETTINGS = [(100, None, 50, 3.6879), (1000, None, 500, 36.7886), (100, 1.0, None, None)]


def inner(x: Any, theta: Any, batch: Any) -> Any:
    (spectrum,) = batch
    return theta * jnp.sum(spectrum * x**2) / 2 - jnp.sum(spectrum * x)


def outer(x: Any, theta: Any, batch: Any) -> Any:
    (coefficients,) = batch
    return jnp.sum(coefficients * x) + 0 * theta


PROBLEM = bl.Problem(inner, outer)


def spectrum(kappa: float) -> np.ndarray:
    return np.geomspace(1 / kappa, 1, D)


def errors(t: Any, step: float, kappa: float) -> np.ndarray:
    """``J_t - J*`` for every t, ``[len(t), D]``."""
    t = np.asarray(t, float)[:, None]
    rho = 1 - step * spectrum(kappa)
    return t * rho ** (t - 1) * step * spectrum(kappa) + rho**t


def jacobian(estimator: Any, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """``(J, x)`` that an estimator's answer amounts to: one outer loss per coordinate of x."""

    def row(coefficients: Any) -> Any:
        data = bl.Data(inner=spectrum(kappa)[None], outer=coefficients[None])
        estimate, lower = bl.hypergradient(
            PROBLEM, estimator, 1.0, np.zeros(D), data, jax.random.key(0)
        )
        return estimate.grad, lower.params

    grad, x = jax.vmap(row)(jnp.eye(D))
    return np.asarray(grad), np.asarray(x[0])


def default_step(kappa: float) -> float:
    return 2 / (1 + 1 / kappa)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("kappa", "step", "peak_at", "peak"), SETTINGS)
def test_forward_is_the_closed_form_at_every_step(
    kappa: float, step: float | None, peak_at: int | None, peak: float | None
) -> None:
    step = step or default_step(kappa)
    estimator, key = bl.Forward(bl.GradientDescent(step), steps=1), jax.random.key(0)
    data = bl.Data(inner=spectrum(kappa)[None], outer=np.ones((1, D)))
    theta, x = jnp.array(1.0), jnp.zeros(D)
    _, lower = bl.hypergradient(PROBLEM, estimator, theta, x, data, key)

    def following(lower: Any, _: None) -> Any:
        _, after = bl.hypergradient(PROBLEM, estimator, theta, x, data, key, state=lower)
        return after, lower.memory.tangents[0][0]

    _, tangents = jax.jit(lambda lower: jax.lax.scan(following, lower, length=600))(lower)
    expected = errors(np.arange(1, 601), step, kappa)
    np.testing.assert_allclose(tangents, expected - 1, rtol=0, atol=1e-9)
    relative = np.linalg.norm(np.asarray(tangents) + 1, axis=1) / np.sqrt(D)
    if peak is None:
        assert relative.max() <= 1
    else:
        assert 1 + relative.argmax() == peak_at
        assert relative.max() == pytest.approx(peak, abs=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [1, 50, 600])
def test_reverse_is_the_closed_form(steps: int) -> None:
    step = default_step(1000)
    found, _ = jacobian(bl.Reverse(bl.GradientDescent(step), steps), 1000)
    np.testing.assert_allclose(found, errors([steps], step, 1000)[0] - 1, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("steps", "truncate"), [(50, 10), (600, 100)])
def test_truncation_drops_exactly_the_early_terms(steps: int, truncate: int) -> None:
    kappa, step = 100, default_step(100)
    solver = bl.GradientDescent(step)
    whole, _ = jacobian(bl.Reverse(solver, steps), kappa)
    short, _ = jacobian(bl.Reverse(solver, steps, truncate=truncate), kappa)
    # J_t = -sum_s rho^(t-1-s) h lambda x_s: the terms s < t - K are missing.
    s = np.arange(steps - truncate)[:, None]
    rho = 1 - step * spectrum(kappa)
    dropped = -np.sum(rho ** (steps - 1 - s) * step * spectrum(kappa) * (1 - rho**s), axis=0)
    np.testing.assert_allclose(whole - short, dropped, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [5, 50, 500])
def test_implicit_error_is_that_of_the_iterate(steps: int) -> None:
    solver = bl.GradientDescent(default_step(1000))
    found, x = jacobian(bl.Implicit(solver, steps, linear=bl.CG(tol=1e-13)), 1000)
    # |J - J*| / |J*| = |x_t - x*| / |x*|, both stars having norm sqrt(D); no peak.
    np.testing.assert_allclose(np.linalg.norm(found + 1), np.linalg.norm(x - 1), rtol=1e-9)
    assert np.linalg.norm(found + 1) < np.sqrt(D)
