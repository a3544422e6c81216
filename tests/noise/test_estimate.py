"""Curvature and gradient noise of real problems against dense NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.noise.hypergradients import measured
from tests.noise.linear_models import LOG_RIDGE

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_hessian_extremes(name):
    """The mlp's Hessian is indefinite: its smallest eigenvalue is found all the same."""
    case = getattr(bl.testing, name)(seed=0)
    x, unravel = ravel_pytree(case.params)
    hessian = jax.jit(
        jax.hessian(lambda x: case.problem.inner(unravel(x), case.hyper, case.data.inner))
    )(x)
    values = np.linalg.eigvalsh(hessian)
    found = jax.jit(partial(measured.hessian_extremes, case.problem))(
        case.hyper, case.params, case.data, jax.random.key(0)
    )
    for ours, expected in zip(found, (values[0], values[-1]), strict=True):
        assert float(ours.value) == pytest.approx(expected, rel=1e-9)
        assert float(ours.error) < 1e-9


def ridge(seed=0, m=23, n=3):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((m, n)), rng.standard_normal(m)
    x, D = rng.standard_normal(n), rng.standard_normal((1, n))
    parts = LOG_RIDGE, jnp.asarray(-1.0), jnp.asarray(x), bl.Data(inner=(A, b), outer=(A, b))
    # Only the part with the row varies from example to example.
    return parts, D, A * (A @ x - b)[:, None], A * (A @ D[0])[:, None]


@pytest.mark.parametrize("chunk", [5, None])
def test_noise_of_all_examples_is_exact(chunk):
    parts, D, gradients, derivatives = ridge()
    how = dict(derivative=D, covariance=True, chunk=chunk)
    found = jax.jit(partial(measured.gradient_noise, parts[0], **how))(*parts[1:])
    np.testing.assert_allclose(found.covariance, np.cov(gradients.T, bias=True), rtol=1e-12)
    np.testing.assert_allclose(found.gradient.value, gradients.var(0).sum(), rtol=1e-12)
    np.testing.assert_allclose(found.derivative.value, [derivatives.var(0).sum()], rtol=1e-12)
    assert float(found.gradient.standard_error) == 0
    assert float(found.derivative.standard_error[0]) == 0


def test_a_sample_is_unbiased_and_knows_its_error():
    parts, D, gradients, derivatives = ridge()
    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.jit(
        jax.vmap(lambda key: measured.gradient_noise(*parts, derivative=D, sample=9, key=key))
    )(keys)
    for ours, exact in ((found.gradient, gradients), (found.derivative, derivatives)):
        values, errors = np.ravel(ours.value), np.ravel(ours.standard_error)
        assert abs(values.mean() - exact.var(0).sum()) < 4 * values.std() / 20  # false alarm: 6e-5
        # The error of a variance from 400 draws is about 4 %, more for heavy tails.
        assert np.mean(errors**2) == pytest.approx(values.var(), rel=0.25)


def test_refusals():
    parts, D, *_ = ridge()
    for settings in ({"sample": 5}, {"sample": 24, "key": jax.random.key(0)}):
        with pytest.raises(ValueError, match="needs a key and must lie between"):
            measured.gradient_noise(*parts, **settings)
    with pytest.raises(ValueError, match="entries for each entry of hyper"):
        measured.gradient_noise(*parts, derivative=D[:, :2])
    problem, *rest = parts
    proximal = bl.Problem(problem.inner, problem.outer, prox=lambda w, h, step: w)
    with pytest.raises(ValueError, match="prox"):
        measured.hessian_extremes(proximal, *rest, jax.random.key(0))
