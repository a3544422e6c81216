"""The null distribution of the largest |z|: independent and identical columns have closed forms."""

import numpy as np
import pytest
from scipy import stats

from experiments.studies.theory.largest_z import judge_largest, resample_largest

DRAWS, LEVEL = 4000, 0.9


def share_below(samples: np.ndarray, quantile: float) -> float:
    return float((resample_largest(samples, DRAWS, np.random.default_rng(1)) < quantile).mean())


@pytest.mark.parametrize("columns", [1, 12])
def test_independent_normal_columns(columns: int) -> None:
    """``P(max |z| < q) = (2 Phi(q) - 1)^columns``; 0.03: one sample's correlations, and t for z."""
    samples = np.random.default_rng(0).standard_normal((1500, columns))
    quantile = stats.norm.ppf((1 + LEVEL ** (1 / columns)) / 2)
    assert share_below(samples, quantile) == pytest.approx(LEVEL, abs=0.03)


def test_the_same_column_ten_times_is_one_comparison() -> None:
    column = np.random.default_rng(0).standard_normal((300, 1))
    once, ten = (
        resample_largest(np.tile(column, n), 50, np.random.default_rng(1)) for n in (1, 10)
    )
    np.testing.assert_allclose(once, ten, rtol=1e-9)


def test_scale_and_shift_do_not_matter() -> None:
    samples = np.random.default_rng(0).chisquare(1, (100, 3))
    at, small, moved = (
        resample_largest(s, 50, np.random.default_rng(1))
        for s in (samples, 1e-20 * samples, 7 + samples)
    )
    np.testing.assert_allclose(small, at, rtol=1e-9)
    np.testing.assert_allclose(moved, at, rtol=1e-9)


def test_skewed_samples_have_a_heavier_tail_than_normal_ones() -> None:
    """Squared errors are skewed: t of few chi-squared numbers has a longer tail."""
    samples = np.random.default_rng(0).chisquare(1, (40, 1))
    assert share_below(samples, stats.norm.ppf(0.995)) < 0.985


def test_the_check_is_of_the_largest_seed() -> None:
    null = np.linspace(1, 3, 1001)
    rows, check = judge_largest([(0, 2.5, 10), (1, 2.0, 20)], [null, null])
    assert [row["p"] for row in rows] == pytest.approx([0.25, 0.5], abs=0.01)
    assert check.passed
    assert "30 comparisons, 2 seeds" in check.name
    assert not judge_largest([(0, 3.1, 10)], [null])[1].passed


def test_one_run_is_refused() -> None:
    with pytest.raises(ValueError, match="1 run has no standard deviation"):
        resample_largest(np.zeros((1, 3)), 5, np.random.default_rng(0))
