"""A small fit takes one BLAS thread, a large one those that there are, and neither changes them."""

from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bilevel.sklearn import (
    HypergradLasso,
    HypergradPoissonRegressor,
    HypergradRidge,
    sparse,
)
from bilevel.sklearn.threads import limit_threads


def count_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@limit_threads
def fit(self: Any, X: Any, y: Any = None) -> list[int]:
    """Return how many threads there are while it runs."""
    return count_threads()


@pytest.mark.parametrize(
    ("X", "few"),
    [
        (np.zeros((400, 200)), True),
        ([[1.0, 2.0], [3.0, 4.0]], True),
        (np.broadcast_to(0.0, (50_000, 500)), False),
        (np.zeros(3), False),  # which fit itself refuses
    ],
)
def test_few_threads_where_little_is_to_do(X: Any, few: bool) -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        before = count_threads()
        assert before
        assert fit(None, X, y=None) == ([1] * len(before) if few else before)
        assert count_threads() == before


@pytest.mark.parametrize("estimator", [HypergradRidge, HypergradLasso, HypergradPoissonRegressor])
def test_every_estimator_fits_so(estimator: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that inherits its ``fit``: asked where it validates what it was given."""
    seen: list[list[int]] = []
    validate = estimator._validate

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(count_threads())
        return validate(self, *args, **options)

    monkeypatch.setattr(estimator, "_validate", spy)
    rng = np.random.default_rng(0)
    with threadpool_limits(limits=2, user_api="blas"):
        estimator().fit(rng.standard_normal((30, 2)), rng.poisson(3.0, 30))
    assert set(seen[0]) == {1}


def test_working_sets_take_one_thread_also_where_x_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While another process held a core, thousands of short calls took twenty times longer."""
    seen: list[list[int]] = []

    class EnoughError(Exception):
        pass

    def spy(*_: Any) -> None:
        seen.append(count_threads())
        raise EnoughError

    monkeypatch.setattr(sparse, "tune_penalties", spy)
    rng = np.random.default_rng(0)
    with threadpool_limits(limits=2, user_api="blas"), pytest.raises(EnoughError):
        HypergradLasso().fit(rng.standard_normal((60, 300_000), np.float32), rng.normal(size=60))
    assert set(seen[0]) == {1}
