"""check_noise: agreement is seen, and disagreement is reported with the way to look."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import dense_hypergradient, logistic

pytestmark = pytest.mark.usefixtures("x64")

CASE = logistic(seed=0)


@functools.cache
def report(step_size: float, steps: int, **how: Any) -> bl.NoiseReport:
    estimator = bl.Reverse(bl.SGD(step_size, batch_size=2), steps)
    parts = (CASE.problem, estimator, CASE.hyper, CASE.params, CASE.data, jax.random.key(0))
    return bl.check_noise(*parts, **({"runs": 600} | how))


@pytest.mark.extended
def test_theory_and_replication_agree_at_a_small_step() -> None:
    found = report(0.1, 200)
    assert found.agrees.all()
    assert found.verdicts == ("agree",)
    assert found.ratio == pytest.approx(1, abs=0.1 + 4 / np.sqrt(2 * 600))
    assert "agree for 1 of 1" in str(found)


def test_the_measured_columns_are_replication_and_the_dense_oracle() -> None:
    found = report(0.1, 200)
    estimator = bl.Reverse(bl.SGD(0.1, batch_size=2), 200)
    many = bl.Replicated(estimator, 600)
    parts = (CASE.problem, many, CASE.hyper, CASE.params, CASE.data, jax.random.key(0))
    estimate = bl.hypergradient(*parts)[0]
    _, grad = dense_hypergradient(CASE.problem, CASE.hyper, CASE.params, CASE.data)
    error = float(estimate.evidence.standard_error)
    np.testing.assert_allclose(found.bias_uncertainty, error, rtol=1e-8)
    np.testing.assert_allclose(found.replicated, error * 600**0.5, rtol=1e-8)
    np.testing.assert_allclose(found.measured_bias, estimate.grad - grad, rtol=1e-5)


@pytest.mark.extended
def test_near_the_limit_of_the_step_size_nothing_is_predicted() -> None:
    """At .9 of the limit (2): the spread of squares is itself too wide for a standard error."""
    found = report(1.8, 200, runs=2400, tol=0.05)
    assert not found.agrees.any()
    assert "no error bar: the step size is near or beyond" in found.verdicts[0]
    assert "agree for 0 of 1" in str(found)


def test_beyond_it_the_report_says_that_there_is_no_error_bar() -> None:
    found = report(3.0, 200)
    assert not found.agrees.any()
    assert "near or beyond the mean-square limit" in found.verdicts[0]


@pytest.mark.extended
def test_a_start_that_is_not_forgotten_is_reported() -> None:
    found = report(0.1, 4)
    assert not found.agrees.any()
    assert "less noise than predicted" in found.verdicts[0]
    assert "start is not forgotten" in found.verdicts[0]


@pytest.mark.extended
def test_over_epochs_the_bias_is_compared_alone() -> None:
    solver = bl.SGD(0.2, batch_size=2, sampling="epoch")
    parts = (CASE.hyper, CASE.params, CASE.data, jax.random.key(0))
    one = bl.Forward(solver, steps=260, average=130)
    found = bl.check_noise(CASE.problem, one, *parts, runs=400)
    assert found.agrees.all()
    assert np.isnan(found.predicted).all()
    assert "nan" in str(found)
    beyond = bl.Forward(bl.SGD(3.0, batch_size=2, sampling="epoch"), steps=26, average=13)
    found = bl.check_noise(CASE.problem, beyond, *parts, runs=10)
    assert "no error bar" in found.verdicts[0]


def test_refuses_too_few_runs() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        report(0.1, 4, runs=5)
