"""What theory says of kinks and of real data in the studies of open questions."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, special
from sklearn import datasets

from experiments.studies.open_questions import hinges, kinks, many_real, problems, real_data
from experiments.studies.open_questions.data_sets import (
    CLASSES,
    REGRESSION,
    load_classes,
    load_regression,
    make_network,
)
from experiments.studies.open_questions.kink_theory import predict_kink_bias, predict_support_bias

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("z", [-1.5, 0.0, 0.7, 3.0])
def test_share_at_a_kink_is_that_of_the_boundary_problem(z: float) -> None:
    """``phi'' / 2 - y phi' = phi``, ``phi(z) = 1``: the transform of the time to hit the kink.

    Solved by SciPy, averaged over the law of the reflected process, ``exp(-y^2)`` above ``z``.
    """
    grid = np.linspace(z, z + 12, 4000)
    found = integrate.solve_bvp(
        lambda y, u: np.stack([u[1], 2 * (y * u[1] + u[0])]),
        lambda a, b: np.array([a[0] - 1, b[0]]),
        grid,
        np.stack([np.exp(-(grid - z)), -np.exp(-(grid - z))]),
        tol=1e-8,
        max_nodes=100_000,
    )
    assert found.success
    weight = np.exp(-(grid**2 - z**2))
    mean = integrate.simpson(found.sol(grid)[0] * weight, x=grid) / integrate.simpson(
        weight, x=grid
    )
    assert predict_kink_bias(z) == pytest.approx(1 - mean, rel=1e-4)


def test_share_at_a_kink_has_the_limits_that_are_stated() -> None:
    assert predict_kink_bias(0.0) == pytest.approx(1 - 2 / np.pi)
    assert predict_kink_bias(100.0) == pytest.approx(1 / (2 * 100.0**2), rel=1e-3)
    assert predict_kink_bias(-30.0) == 1.0
    assert np.isinf(special.erfcx(-30.0))  # which is why it is not asked
    values = [predict_kink_bias(z) for z in np.linspace(-8, 8, 100)]
    assert (np.diff(values) <= 1e-12).all()


def test_the_bias_of_a_support_vanishes_with_the_step_and_jumps_at_a_knot() -> None:
    """Two uncorrelated columns, one in the support: by hand, from its slack and its noise."""
    X, y = _make_two_columns(slack=0.02)
    inner = outer = X, y
    bias, nearest = predict_support_bias(inner, outer, np.log(0.5), 1e-3)
    second = X[:, 1] * (X @ [0.5, 0.0] - y)
    z = 0.02 / (second.std() / kinks.BATCH**0.5 * 1e-3**0.5)
    assert nearest == pytest.approx(z, rel=1e-6)
    jump = 0.5 * 0.48  # dw/dlog lam1 = -lam1 times the outer slope, -0.48, of the second column
    share = predict_kink_bias(z)
    exact = kinks.solve_sparse(inner, outer, np.log(0.5), 0.0).grad[0]
    assert bias == pytest.approx(share * jump / exact, rel=1e-6)


def _make_two_columns(slack: float) -> tuple[np.ndarray, np.ndarray]:
    """``X^T X / n = I``, ``X^T y / n = (1, 0.5 - slack)``, noise orthogonal to both."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((40, 3)))[0] * 40**0.5
    return basis[:, :2], basis @ [1.0, 0.5 - slack, 0.7]


@pytest.mark.parametrize("name", REGRESSION[1:])
def test_regression_tables_are_those_of_scikit_learn(name: str) -> None:
    """Every column has a correlation of 1 with the table's, once rows are sorted alike."""
    X, y = load_regression(name, 3)
    assert X.mean(0) == pytest.approx(0, abs=1e-12)
    assert (X**2).sum(1).mean() == pytest.approx(1)
    assert (y.mean(), y.std()) == pytest.approx((0, 1))
    table = datasets.load_diabetes(scaled=False) if name == "diabetes" else datasets.load_wine()
    columns = table.data if name == "diabetes" else table.data[:, 1:]
    target = table.target if name == "diabetes" else table.data[:, 0]
    there = np.linalg.lstsq(columns - columns.mean(0), target - target.mean(), rcond=None)[1]
    here = np.linalg.lstsq(X, y, rcond=None)[1]
    assert here[0] == pytest.approx(there[0] / target.var(), rel=1e-9)  # the same residuals


def test_class_tables_have_two_labels_and_unknown_names_are_refused() -> None:
    for name in CLASSES:
        X, y = load_classes(name, 0)
        assert set(y) == {-1.0, 1.0}
        assert np.isfinite(X).all()
    with pytest.raises(ValueError, match="no data 'iris'; there are synthetic, diabetes, wine"):
        load_regression("iris", 0)
    with pytest.raises(ValueError, match="no data 'iris'; there are synthetic, breast"):
        load_classes("iris", 0)


def test_a_network_on_real_data_takes_the_columns_that_explain_most() -> None:
    """Of all pairs of columns of diabetes these two leave least to explain."""
    case = make_network(True, 0)
    X, y = load_regression("diabetes", 0)
    pairs = list(itertools.combinations(range(10), 2))
    left = [np.linalg.lstsq(X[:, pair], y, rcond=None)[1][0] for pair in pairs]
    assert pairs[int(np.argmin(left))] == (2, 8)
    np.testing.assert_allclose(case.data.inner["x"], X[:100, [2, 8]] * 10**0.5)
    assert case.data.outer["y"].shape == (100,)


def test_both_noises_of_ridge_by_hand() -> None:
    """``a_i (a_i.x - b_i) + lam x`` and ``(a_i a_i^T + lam) D + lam x`` at ``x*`` and ``D*``."""
    at = problems.make_ridge(1, examples=30, features=3)
    row = real_data.describe_noise(at)
    (A, b), lam = at.data.inner, float(np.exp(at.hyper))
    H = A.T @ A / 30 + lam * np.eye(3)
    x = np.linalg.solve(H, A.T @ b / 30)
    D = -np.linalg.solve(H, lam * x)
    of_x = A * (A @ x - b)[:, None] + lam * x
    of_D = A * (A @ D)[:, None] + lam * D + lam * x
    for name, each in (("sigma_x", of_x), ("sigma_D", of_D)):
        assert each.mean(0) == pytest.approx(0, abs=1e-12)
        assert row[name] == pytest.approx(np.sqrt((each**2).sum(1).mean()), rel=1e-8)
    assert row["|D*|"] == pytest.approx(np.linalg.norm(D), rel=1e-8)


@pytest.mark.parametrize("name", CLASSES)
def test_the_exact_derivative_of_the_hinge_is_that_of_differences(name: str) -> None:
    """And the limit that is expected of subgradient SGD is ``-w*`` in its place, by hand."""
    X, y = load_classes(name, 0)
    (at, exact, lam), n, h = hinges.make_hinge_case(X, y, 0.1), len(y) // 2, 1e-5
    inner, outer = (X[:n], y[:n]), (X[n:], y[n:])
    assert at.examples == n
    assert lam == 0.1

    def value(w: np.ndarray) -> float:
        return float(np.log1p(np.exp(-outer[1] * (outer[0] @ w))).mean())

    ends = [
        value(kinks.solve_hinge(inner, outer, np.log(0.1) + way * h).solution) for way in (-1, 1)
    ]
    assert exact.grad[0] == pytest.approx((ends[1] - ends[0]) / (2 * h), rel=1e-4)
    shrunk = [value(exact.solution * (1 - way * h)) for way in (-1, 1)]
    assert exact.missed[0] == pytest.approx((shrunk[1] - shrunk[0]) / (2 * h), rel=1e-6)


def test_a_hinge_whose_margin_fixes_all_params_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10 examples on the margin determine all 10.*above 0.02"):
        hinges.make_hinge_case(*load_classes("digits", 0), 0.02)


def test_products_of_columns_are_all_monomials_but_the_constant_ones() -> None:
    """Of 10 columns up to degree 3: 285, which begin with the ranks of the columns themselves."""
    at = many_real.make_real_case("feature", "digits", 3, 0)
    X = np.concatenate([level["X"] for level in (at.data.inner, at.data.outer)])
    assert X.shape == (357, math.comb(13, 3) - 1)
    assert X.mean(0) == pytest.approx(0, abs=1e-12)
    assert (X**2).sum(1).mean() == pytest.approx(1)
    table, _ = load_classes("digits", 0)
    ranks = table.argsort(0).argsort(0) / 356 * 2 - 1
    np.testing.assert_allclose(X[:, 0], ranks[:, 0] / ranks[:, 0].std() / 285**0.5, atol=1e-12)
    sex = many_real.make_real_case("feature", "diabetes", 2, 0)  # has a constant square
    assert sex.exact.shape == (math.comb(12, 2) - 2,)
    example = many_real.make_real_case("example", "diabetes", 2, 0)
    assert example.exact.shape == (221,)
