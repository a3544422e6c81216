"""Sparse rows in the data: the same hypergradients as of the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental.sparse import BCOO

import bilevel as bl

DENSE = sp.random(12, 6, 0.3, random_state=0).toarray()
DENSE[3] = 0
X = sp.csr_matrix(DENSE)
Y = np.arange(12.0)
KEY = jax.random.key(0)
FORMATS = {
    "csr": lambda: X,
    "csc": lambda: X.tocsc(),
    "array": lambda: sp.csr_array(X),
    "bcoo": lambda: BCOO.from_scipy_sparse(X),
    "padded bcoo": lambda: BCOO.fromdense(X.toarray(), nse=60),
}


def inner(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.exp(h) * jnp.sum(w**2) / 2


def outer(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_those_of_the_matrix(name):
    data = bl.Data(inner=(FORMATS[name](), Y), outer=(FORMATS[name](), Y))
    rows = data.inner[0]
    assert rows.shape == (12, 6)
    assert rows.values.shape[1] == np.diff(X.indptr).max()
    np.testing.assert_array_equal(rows.todense(), X.toarray())
    weights = np.random.default_rng(0).standard_normal((6, 2))
    np.testing.assert_allclose(rows @ jnp.asarray(weights), X @ weights, atol=1e-14)


@pytest.mark.parametrize(
    "estimator",
    [
        bl.Reverse(bl.SGD(0.1, batch_size=4), 5, outer_batch_size=5),
        bl.Implicit(bl.GradientDescent(0.5), 30),
        bl.SingleLoop(0.1, batch_size=4),
    ],
)
def test_hypergradients_are_those_of_the_dense_matrix(estimator):
    problem, w, h = bl.Problem(inner, outer), jnp.zeros(6), jnp.array(-1.0)
    sparse, dense = (bl.Data(inner=(x, Y), outer=(x, Y)) for x in (X, X.toarray()))
    one, two = (
        bl.hypergradient(problem, estimator, h, w, data, KEY, max_error=np.inf)[0]
        for data in (sparse, dense)
    )
    np.testing.assert_allclose(one.grad, two.grad, rtol=1e-12)
    np.testing.assert_allclose(one.value, two.value, rtol=1e-12)


def test_a_matrix_of_zeros():
    rows = bl.SparseRows.from_matrix(sp.csr_matrix((3, 4)))
    np.testing.assert_array_equal(rows @ jnp.ones(4), np.zeros(3))


def test_under_jit_the_cure_is_said():
    with pytest.raises(ValueError, match="SparseRows"):
        jax.jit(lambda x: bl.Data(inner=x, outer=x))(BCOO.from_scipy_sparse(X))
