"""Functions of a matrix from products alone, against its eigenvectors."""

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.linear.lanczos import function_product, tridiagonal
from tests.noise import quadratics as q

pytestmark = pytest.mark.usefixtures("x64")


def test_function_product_converges_and_ends_exact():
    rng = np.random.default_rng(0)
    K = q.hessian(rng, np.linspace(0.1, 3, 19))
    v = rng.normal(size=19)
    h, U = np.linalg.eigh(K)
    exact = U @ (np.exp(-h) * (U.T @ v))
    errors = [
        np.abs(function_product(lambda x: jnp.exp(-x), lambda u: K @ u, jnp.array(v), m) - exact)
        for m in (4, 10, 40)
    ]
    sizes = [float(e.max()) for e in errors]
    assert sizes[0] > 1e-4
    assert sizes[1] < 1e-8
    assert max(sizes[2:]) < 1e-13


def test_tridiagonal_is_the_operator_in_its_basis():
    K = jnp.array(q.hessian(np.random.default_rng(1), np.linspace(0.1, 3, 11)))
    found = tridiagonal(lambda u: K @ u, jnp.ones(11), 6)
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(6), atol=1e-13)
    np.testing.assert_allclose(found.basis @ K @ found.basis.T, found.matrix, atol=1e-13)


@pytest.mark.parametrize("start", [np.ones(6), np.eye(6)[2], np.zeros(6)])
def test_an_exhausted_space_is_exact(start):
    values = jnp.array([1.0, 1, 1, 2, 2, 0])
    found = function_product(jnp.exp, lambda u: values * u, jnp.array(start), 6)
    np.testing.assert_allclose(found, np.exp(values) * start, atol=1e-13)


def test_refusals():
    with pytest.raises(ValueError, match="ravel_pytree"):
        tridiagonal(lambda v: v, jnp.ones((2, 2)), 2)
    with pytest.raises(ValueError, match="at least 1"):
        tridiagonal(lambda v: v, jnp.ones(2), 0)
