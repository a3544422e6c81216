"""Plans for momentum, Nesterov's and the heavy ball's, and for batches without replacement."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.noise import batch_factor
from bilevel.noise.moments import rules
from bilevel.noise.quadratic import minibatch
from bilevel.planning.scheme import Scheme
from tests.planning.plans import LOGISTIC, RIDGE, exact_error, measured, only, planned

APART = "without_replacement"
HEAVY = {"momentum": 0.8}
NESTEROV = {"momentum": 0.7, "nesterov": True, "sampling": APART}


@pytest.fixture(scope="module")
def heavy():
    return planned(RIDGE, tolerance=0.3, batch_sizes=(4, 16), **HEAVY)


@pytest.fixture(scope="module")
def nesterov():
    return planned(RIDGE, tolerance=0.3, batch_sizes=(4, 16), **NESTEROV)


CASES = [("heavy", HEAVY), ("nesterov", NESTEROV)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_predictions_are_exact_once_stationary(name, settings, request):
    plan = request.getfixturevalue(name)
    for window in (1, 7, 300):
        lengths = {"start": 150, "wait": 220, "window": window}
        best = replace(plan.chosen, batch_size=4, step_size=0.05, **lengths)
        total = plan.planner._error(best)[0] / np.linalg.norm(plan.exact)
        np.testing.assert_allclose(total, exact_error(best, **settings), rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_plans_keep_their_promise(name, settings, request):
    for tolerance in (0.3, 0.1):
        plan = request.getfixturevalue(name).at(tolerance)
        assert plan.error.total <= tolerance
        kept = exact_error(plan.chosen, **settings)
        assert kept == pytest.approx(plan.error.total, rel=0.25)
    solver = plan.estimator.solver
    assert {key: getattr(solver, key) for key in settings} == settings
    assert f"momentum={settings['momentum']}" in str(plan)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_limits_are_those_of_the_exact_theory(name, settings, request):
    plan, (A, _) = request.getfixturevalue(name), RIDGE.data.inner
    H = A[:, :, None] * A[:, None, :] + np.diag(np.exp(RIDGE.hyper))
    limit = jax.jit(minibatch.step_limit, static_argnames="nesterov")
    for size, found in plan.planner.problem.limits.items():
        factor = batch_factor(len(A), size, settings.get("sampling", "iid"))
        exact = limit(H, factor, settings["momentum"], nesterov=settings.get("nesterov", False))
        np.testing.assert_allclose(found, exact, rtol=2e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(0.6), Scheme(0.6, nesterov=True)])
def test_step_matrices_are_those_of_the_rules(scheme):
    rule = rules.sgd(0.3, scheme.momentum, scheme.nesterov)
    for ours, theirs in zip(scheme.step_matrices(0.3), rule, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_without_replacement_a_batch_has_less_noise():
    """Of 23 rows 16 have the noise of 51 with replacement."""
    apart = planned(RIDGE, tolerance=0.1, batch_sizes=(16,), sampling=APART)
    plain = planned(RIDGE, tolerance=0.1, batch_sizes=(16,))
    assert apart.cost < 0.7 * plain.cost
    assert apart.error.total <= 0.1
    assert exact_error(apart.chosen, sampling=APART) == pytest.approx(apart.error.total, rel=0.15)


@pytest.mark.extended
@pytest.mark.parametrize("settings", [{"momentum": 0.6}, NESTEROV])
def test_measured_errors_off_quadratic_losses_are_as_promised(settings):
    plan = planned(LOGISTIC, tolerance=0.2, batch_sizes=(4, 16), **settings)
    size, error = measured(LOGISTIC, plan, runs=400)
    assert abs(size - plan.error.total) < 0.5 * plan.error.total + 4 * error  # false alarm: 6e-5


def test_refusals():
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1.5"):
        planned(RIDGE, momentum=1.5)
    with pytest.raises(TypeError, match=r"momentum must be a number or None.*no stationary law"):
        planned(RIDGE, momentum=lambda count: 0.9)
    with pytest.raises(ValueError, match=r"momentum=0.9 needs exact moments.*too many"):
        planned(RIDGE, momentum=0.9, route="influence")
    with pytest.raises(ValueError, match=r"is above .*, the largest that the theory is trusted"):
        only(planned(RIDGE, tolerance=0.3, batch_sizes=(4,), **HEAVY), 4, step_size=1.0).plan(0.3)


def test_a_plan_is_ready_to_use(nesterov):
    estimator = nesterov.estimator
    assert isinstance(estimator, bl.Forward)
    assert isinstance(estimator.solver, bl.SGD)
    case = RIDGE
    at = case.problem, estimator, case.hyper, case.params, case.data
    assert np.isfinite(bl.hypergradient(*at, jax.random.key(0))[0].grad).all()
