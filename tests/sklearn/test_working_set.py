"""Solves and fits with many columns in use, against dense solves and scikit-learn."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet

from bilevel.sklearn.losses.active_set import SparseFit, fit_elastic_net
from bilevel.sklearn.losses.fold_quadratics import make_quadratics
from bilevel.sklearn.losses.folds import make_splits
from bilevel.sklearn.losses.working_set import WorkingSet


def test_solves_with_columns_that_come_and_leave_are_dense_solves():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 320)) * 10.0 ** rng.uniform(-2, 2, 320)
    matrix = rows.T @ rows
    working, used = WorkingSet(matrix[:300, :300]), np.arange(320) < 300
    working.solve(np.arange(300), np.ones(300))
    working.add(matrix[:300, 300:], matrix[300:, 300:])
    served = 0
    for _ in range(12):
        used ^= rng.uniform(size=320) < 0.03
        at, base = np.flatnonzero(used), working.base
        right = rows[:, at].T @ rng.normal(size=600)
        x = working.solve(at, right)
        kept = base is working.base
        expected = np.linalg.solve(matrix[np.ix_(at, at)], right)
        unit = np.linalg.norm(rows[:, at], axis=0)
        np.testing.assert_allclose(x * unit, expected * unit, atol=1e-8 * np.max(expected * unit))
        assert kept or len(np.setxor1d(base, at)) > 0.2 * len(base)
        served += kept
    assert served > 6


def test_a_set_whose_columns_occur_twice_is_solved_as_by_a_factor_of_its_own():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 200))
    rows = np.hstack([rows, rows[:, :20]])
    working, matrix = WorkingSet(rows.T @ rows), rows.T @ rows
    working.solve(np.arange(200), np.ones(200))
    at = np.delete(np.arange(220), np.arange(5, 15))
    right = rows[:, at].T @ rng.normal(size=400)
    x = working.solve(at, right)
    np.testing.assert_allclose(matrix[np.ix_(at, at)] @ x, right, atol=1e-6 * np.max(right))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.02])
def test_fits_with_many_columns_are_scikit_learns(l2, positive):
    """From the fit of a stronger penalty on: a few columns come and a few leave."""
    rng = np.random.default_rng(2)
    A = rng.normal(size=(500, 700))
    A[:, 1:] += 0.5 * A[:, :-1]
    y = A[:, ::5] @ rng.normal(size=140) + 5 * rng.normal(size=500)
    splits = make_splits(5, A, y, None, classifier=False, random_state=None)
    fold: Any = make_quadratics(A, y, np.ones(500), splits, True)(None).folds[-1]
    fit = SparseFit(np.zeros(0, int), np.zeros(0), np.inf)
    for alpha in (0.5, 0.3, 0.25, 0.28):
        fit = fit_elastic_net(fold, np.full(700, alpha), np.full(700, l2), fit, positive=positive)
        assert fit.violation <= 1e-10
        assert np.all(np.diff(fit.support) > 0)
        net = ElasticNet(
            alpha + l2, l1_ratio=alpha / (alpha + l2), tol=1e-13, max_iter=10**5, positive=positive
        )
        coef = net.fit(A, y).coef_
        np.testing.assert_array_equal(fit.support, np.flatnonzero(coef))
        np.testing.assert_allclose(fit.w, coef[fit.support], atol=1e-8)
    assert len(fit.support) > 150
