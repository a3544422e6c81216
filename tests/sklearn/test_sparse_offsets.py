"""Sparse rows with a column that is nowhere 0 and far from it, against the same rows dense."""

import numpy as np
import pytest
from scipy import sparse

from bilevel.sklearn import (
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
    HypergradSparseLogisticRegression,
)

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(30, 60))
NOISE = RNG.normal(size=30)


@pytest.mark.parametrize(
    "make",
    [
        HypergradRidge,
        lambda: HypergradRidge(cv="loo"),
        HypergradLasso,
        HypergradLogisticRegression,
        lambda: HypergradSparseLogisticRegression(alphas=[1.0]),
    ],
    ids=["ridge", "loo", "lasso", "logistic", "sparse logistic"],
)
@pytest.mark.parametrize("d", [6, 60])
def test_a_large_mean_does_not_cancel(make, d):
    """Before, ridge lost a third of its loss; the l1-penalised logistic search did not end."""
    X = WIDE[:, :d] + 1e7 * (np.arange(d) == 0)
    y = WIDE[:, :3].sum(1) + NOISE
    weight = np.repeat([1.0, 2.0, 0.0], 10)
    y = (y > 0).astype(int) if "Logistic" in type(make()).__name__ else y
    dense, thin = (make().fit(A, y, weight) for A in (X, sparse.csr_array(X)))
    np.testing.assert_allclose(thin.cv_loss_, dense.cv_loss_, rtol=1e-4)
    seen = [getattr(m, "predict_proba", m.predict)(X) for m in (thin, dense)]
    np.testing.assert_allclose(seen[0], seen[1], atol=0.02 * np.std(y))


@pytest.mark.parametrize("unit", [1e-120, 1e120])
def test_wide_rows_in_absurd_units(unit):
    y = WIDE[:, :3].sum(1) + NOISE
    one, other = (HypergradRidge().fit(WIDE * scale, y) for scale in (1.0, unit))
    np.testing.assert_allclose(other.cv_loss_, one.cv_loss_, rtol=1e-6)
    np.testing.assert_allclose(other.alpha_ / unit / unit, one.alpha_, rtol=1e-2)
