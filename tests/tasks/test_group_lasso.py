"""Group lasso tasks against the optimality conditions and central differences."""

import numpy as np
import pytest

from tasks.lasso import lasso
from tests.tasks.lasso_cases import GROUPS, at, design, folds, make


def group_of(name: str) -> str:
    blood = name.removesuffix("^2") in ("s1", "s2", "s3", "s4", "s5", "s6")
    body = " " not in name and not blood
    # The pattern age* also takes the products that begin with it.
    body |= name.startswith(("age", "bmi", "bp"))
    return "body" if body else "blood" if blood else "rest"


def largest_slope(X: np.ndarray, y: np.ndarray, of: np.ndarray) -> float:
    """The least penalty that keeps no group."""
    slopes = X.T @ y / len(y)
    return max(np.linalg.norm(slopes[of == g]) / np.sqrt(np.sum(of == g)) for g in range(3))


def test_group_lasso_meets_the_optimality_conditions(x64) -> None:
    """They suffice, the loss is convex: a kept group balances, a dropped one pulls less."""
    made = make("group_lasso", "per_group")
    assert made.exact is not None
    ((X, y, Z, t),) = folds("holdout")
    of = np.array([list(GROUPS).index(group_of(name)) for name in design().features.names])
    largest = np.log(largest_slope(X, y, of))
    hyper = largest + np.log([0.2, 0.4, 0.95])
    estimate, state = at(made, hyper)
    w, value, grad = map(np.asarray, (state.params, estimate.value, estimate.grad))
    slopes, kept = X.T @ (X @ w - y) / len(y), []
    for g, pull in enumerate(np.exp(hyper) * np.sqrt(np.bincount(of))):
        size = np.linalg.norm(w[of == g])
        kept.append(bool(size))
        if size:
            np.testing.assert_allclose(-slopes[of == g], pull * w[of == g] / size, atol=1e-9)
        else:
            assert np.linalg.norm(slopes[of == g]) <= pull
    assert any(kept)
    assert not all(kept), "a case in which no group is dropped tests little"
    assert value == pytest.approx(np.mean((Z @ w - t) ** 2) / 2, rel=1e-9)
    exact, slope = made.exact(hyper)
    assert exact == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(grad, slope, rtol=1e-6, atol=1e-10)
    way, step = np.array([1.0, -2.0, 0.5]), 1e-5
    up, down = (made.exact(hyper + s * way)[0] for s in (step, -step))
    assert np.sum(slope * way) == pytest.approx((up - down) / (2 * step), rel=1e-5)
    # One penalty for all groups is as many that are equal.
    one = make("group_lasso", "global").exact
    assert one is not None
    (value, slope), (total, slopes) = one(largest - 1), made.exact(np.full(3, largest - 1))
    assert (value, slope) == pytest.approx((total, np.sum(slopes)))


def test_groups_that_do_not_fit_the_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="groups belong to kind='group_lasso', not to 'lasso'"):
        lasso(groups=GROUPS)
    with pytest.raises(ValueError, match="kind='group_lasso' needs groups="):
        lasso(kind="group_lasso")
    with pytest.raises(ValueError, match=r"penalty='global' or 'per_group'; got .*'per_feature'"):
        lasso(kind="group_lasso", penalty="per_feature", groups=GROUPS)
