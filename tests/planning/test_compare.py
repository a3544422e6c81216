"""What error costs which estimator: moments by listing all draws, and errors of real runs."""

import itertools
import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from bilevel.noise import Ridge, hypergradient_error, limits, prediction, rules
from bilevel.planning.reduced import Reduced
from tests.planning.plans import LOGISTIC, RIDGE, measured, planned


@pytest.fixture(scope="module")
def compared() -> Any:
    return planned(RIDGE, tolerance=0.3, batch_sizes=(1, 4), compare=True)


def reduced_of(compared: Any, rows: int) -> Reduced:
    """A small problem of SVRG and SAGA: as many rows of the ridge problem, one hyperparameter."""
    whole = compared.planner.problem.reduced
    some = object.__new__(Reduced)
    matrices, values = whole.matrices[:1, :rows], whole.values[:1, :rows]
    values = values - values.mean(1, keepdims=True)  # their sum is 0 at the solution
    some.matrices, some.values, some.mean = matrices, values, matrices.mean(1)
    some.local, some.begin = whole.local, whole.begin[:1]
    return some


@pytest.mark.parametrize("name", ["svrg", "saga"])
def test_moments_are_those_of_all_draws(compared: Any, name: str) -> None:
    small, eta, rows = reduced_of(compared, 2), 0.2, 2
    C, at = small.matrices[0], -small.values[0]
    steps, total = 4, 0
    for drawn in itertools.product(range(rows), repeat=steps):
        z = snapshot = small.begin[0]
        table = at.copy()
        for i in drawn:
            if name == "svrg":
                z = z - eta * (C[i] @ (z - snapshot) + small.mean[0] @ snapshot)
            else:
                step = C[i] @ z - table[i] + table.mean(0)
                table[i], z = C[i] @ z, z - eta * step
        total = total + np.outer(z, z) / rows**steps
    moments = getattr(small, f"_{name}")(eta)
    found = [next(moments) for _ in range(1 if name == "svrg" else steps)][-1]  # a period: 2 rows
    np.testing.assert_allclose(found[0], total, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", [RIDGE, pytest.param(LOGISTIC, marks=pytest.mark.extended)])
def test_implicit_error_is_that_of_the_dense_theory(case: Any) -> None:
    plan: Any = planned(case, tolerance=0.5, batch_sizes=(4,), compare=True)
    eta = 0.01
    run = plan.planner.problem.predict(eta, 4, "implicit")
    bias, variance = run.stationary_error(5)

    def theory(hyper: Any, params: Any, data: Any) -> Any:
        at = case.problem, hyper, params, data, rules.sgd(eta)
        return prediction.stationary_error(*at, batch_size=4, window=5, implicit=True).error

    found = jax.jit(theory)(case.hyper, plan.params, case.data)
    np.testing.assert_allclose(bias, found.bias, rtol=1e-5)
    # Beside the terms of first order the plan counts those of second order, O(step size).
    np.testing.assert_allclose(np.sqrt(variance), found.standard_deviation, rtol=0.03)
    assert np.all(variance >= 0.999999 * found.standard_deviation**2)


@pytest.mark.usefixtures("x64")
def test_cross_sampled_error_is_the_exact_one(compared: Any) -> None:
    """On a quadratic the variance of independent chains has no term that moments do not know."""
    (A, b), (V, c), penalty = RIDGE.data.inner, RIDGE.data.outer, np.exp(RIDGE.hyper)
    process = Ridge.from_data(A, b, penalty, np.diag(penalty), batch_size=4)
    end = jax.jit(limits.stationary)(process, rules.sgd(0.2))
    outer = V.T @ (V @ process.solution - c) / len(c), V.T @ V / len(c)
    exact = hypergradient_error.predict(end, process.derivative, *outer, cross=True)
    bias, variance = compared.planner.problem.predict(0.2, 4, "cross").stationary_error(1)
    np.testing.assert_allclose(bias, exact.bias, atol=1e-9)
    np.testing.assert_allclose(np.sqrt(variance), exact.standard_deviation, rtol=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["cross-sampled", "implicit", "SVRG", "SAGA", "last iterate"])
def test_measured_errors_are_as_predicted(compared: Any, name: str) -> None:
    """Full batches are not among them, so that every run but those of SVRG and SAGA is noisy."""
    title = next(one for one in compared.comparison.settings if name in one)
    one = compared.comparison.settings[title][compared.comparison.tolerances.index(0.1)]
    size, error = measured(RIDGE, replace(compared, estimator=one.estimator), runs=400)
    assert abs(size - one.error) < 0.25 * one.error + 4 * error  # false alarm: 6e-5


def test_table_marks_the_cheapest_and_says_why_there_is_none(compared: Any) -> None:
    found, text = compared.comparison, str(compared)
    assert len(found.settings) == 6
    assert str(found) in text
    for k, tolerance in enumerate(found.tolerances):
        costs = {name: row[k].cost for name, row in found.settings.items()}
        assert found.best(tolerance) == min(costs, key=lambda name: costs[name])
        for row in found.settings.values():
            assert row[k].estimator is None or row[k].error <= tolerance * (1 + 1e-9)
    with pytest.raises(ValueError, match="must be one of"):
        found.best(0.123)
    assert compared.at(0.2).comparison is found

    class Axes:
        lines, said = 0, ()

        def plot(self, x: Any, y: Any, *_: Any, label: str) -> None:
            assert len(x) == len(y)
            assert label in found.settings
            self.lines += 1

        def set(self, **_: Any) -> None:
            pass

        def legend(self) -> None:
            pass

    axes = Axes()
    found.draw(axes)
    assert axes.lines == 6


def test_what_is_too_large_for_exact_moments_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compare=True needs exact moments .* too many"):
        planned(RIDGE, compare=True, route="influence")


@pytest.mark.extended
def test_variance_reduction_off_a_quadratic_is_not_predicted() -> None:
    found = planned(LOGISTIC, tolerance=0.3, batch_sizes=(4,), compare=True).comparison
    assert found is not None
    for name in ("SVRG, last iterate", "SAGA, last iterate"):
        assert all(one.cost == math.inf for one in found.settings[name])
        assert f"- {name}: known for quadratic inner losses only" in str(found)
