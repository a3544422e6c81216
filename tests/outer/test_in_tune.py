"""Outer rules in `tune`: cut, mapped over, refused, and what a run ends with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.outer.base import move_hyper
from bilevel.outer.inner_tolerance import loosen_tolerances
from tests.compiling import compilations
from tests.tuning.test_tune import assert_same


def inner(w: Any, h: Any, x: Any) -> Any:
    return jnp.mean(jnp.sum((w - x) ** 2, -1)) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2


def outer(w: Any, h: Any, x: Any) -> Any:
    return jnp.mean(jnp.sum((w - x) ** 2, -1)) / 2


# w* = 2 / (1 + e^h), best where it is the outer target; the inner curvature 1 + e^h must stay below
# 2 / step size = 4, and it is 3.64 at the second optimum.
PROBLEM = bl.Problem(inner, outer)
TARGET = np.array([1.5, 0.55])
BEST = np.log(2 / TARGET - 1)
DATA = bl.Data(inner=np.full((1, 2), 2.0), outer=TARGET[None])
SOLVER = bl.GradientDescent(step_size=0.5)
EXACT = bl.Implicit(SOLVER, steps=100)
KEY = jax.random.key(0)


def tune(rule: Any, steps: int, *, estimator: Any = EXACT, start: Any = (-3.0, -1.0), **more: Any):
    arguments = (PROBLEM, estimator, rule, np.asarray(start), np.zeros(2), DATA)
    return bl.tune(*arguments, steps=steps, **({"key": KEY} | more))


@pytest.mark.extended
def test_a_trial_where_the_solver_diverges_is_taken_back() -> None:
    result = tune(bl.outer.Auto(), 30)
    refused = ~np.isfinite(result.history["value"])
    assert refused.any()
    assert not result.diverged
    assert result.converged
    np.testing.assert_allclose(result.hyper, BEST, atol=1e-4)


def test_a_run_ends_with_the_best_accepted_point() -> None:
    result = tune(bl.outer.Auto(), 4)
    values, best = result.history["value"], result.history["best"]
    np.testing.assert_array_equal(best, np.fmin.accumulate(values))
    again = tune(bl.outer.Auto(), 1, start=result.hyper)
    np.testing.assert_allclose(again.history["value"][0], best[-1], rtol=1e-4)


def test_cut_in_two_it_is_the_same_run_bit_for_bit() -> None:
    whole, first = tune(bl.outer.Auto(), 14), tune(bl.outer.Auto(), 7)
    second = tune(bl.outer.Auto(), 7, state=first.state)
    assert_same((second.hyper, second.state), (whole.hyper, whole.state))


@pytest.mark.extended
def test_mapped_over_starts_it_is_the_loop() -> None:
    starts = np.array([[-3.0, -1.0], [-1.0, -2.0], [0.5, -3.0]], np.float32)
    rule, params = bl.outer.Auto(), np.zeros(2, np.float32)

    def one(start: Any) -> Any:
        result = bl.tune(PROBLEM, EXACT, rule, start, params, DATA, steps=30, key=KEY)
        return result.hyper, result.history["value"][:6]

    hyper, values = jax.jit(jax.vmap(one))(starts)
    for start, found, path in zip(starts, hyper, values, strict=True):
        alone = tune(rule, 30, start=start)
        np.testing.assert_allclose(path, alone.history["value"][:6], rtol=1e-3)
        np.testing.assert_allclose(found, BEST, atol=1e-4)


def test_tolerances_fall_with_the_line_search_down_to_the_estimators_own() -> None:
    def run(tolerance: float) -> Any:
        solver = bl.LBFGS(tol=1e-5)
        estimator = bl.Implicit(solver, steps=30, linear=bl.CG(tol=1e-5))
        whole = {"tol": None, "hooks": [bl.Blocks(compare=False)]}
        return tune(bl.outer.LineSearch(tolerance, 0.6), 32, estimator=estimator, **whole)

    with compilations() as count:
        loose = run(0.5)
        begun = int(count)
        tight = run(0.0)
    assert int(count) == begun > 0
    residual = np.asarray(loose.history["inner_residual"])
    assert residual[0] > 1e-3
    assert np.all(residual <= np.maximum(0.5 * 0.6 ** np.arange(32), 2e-5))
    np.testing.assert_allclose(loose.hyper, BEST, atol=5e-3)
    assert loose.history["hvps"][:4].sum() < tight.history["hvps"][:4].sum()


def test_tolerances_are_found_in_wrappers_and_never_tightened() -> None:
    newton = bl.Implicit(bl.Newton(bl.CG(tol=1e-4), tol=None), 3, bl.CG(tol=1e-2))
    got = loosen_tolerances(bl.Replicated(newton, 2), 1e-3)
    assert got.estimator.solver.tol is None
    np.testing.assert_allclose(got.estimator.solver.linear.tol, 1e-3)
    np.testing.assert_allclose(got.estimator.linear.tol, 1e-2)
    np.testing.assert_allclose(loosen_tolerances(bl.Auto(1e-5), 1e-3).tolerance, 1e-3)
    assert loosen_tolerances(EXACT.solver, 1e-3) is EXACT.solver


def test_optax_transformations_see_the_value() -> None:
    theirs = tune(optax.polyak_sgd(max_learning_rate=0.8), 5)
    h, value, slope = [np.array([-3.0, -1.0])], [], []
    for _ in range(5):
        w = 2 / (1 + np.exp(h[-1]))
        value.append(np.sum((w - TARGET) ** 2) / 2)
        slope.append((w - TARGET) * -(w**2) * np.exp(h[-1]) / 2)
        h.append(h[-1] - min(value[-1] / np.sum(slope[-1] ** 2), 0.8) * slope[-1])
    np.testing.assert_allclose(theirs.history["value"], value, rtol=1e-3)


def test_a_transformation_that_names_the_standard_error_gets_it() -> None:
    class Wary:
        def init(self, params: Any) -> Any:
            return ()

        def update(self, grad: Any, state: Any, params: Any, *, value: Any, standard_error: Any):
            return -grad / (1 + standard_error), state

    estimate = bl.Estimate(jnp.array(1.0), jnp.array(2.0), bl.Evidence(standard_error=3.0))
    assert move_hyper(Wary(), estimate, (), jnp.array(1.0))[0] == 0.5


def test_what_cannot_work_says_so() -> None:
    with pytest.raises(TypeError, match=r"outer loss once per step.*bl\.outer\.LBFGS"):
        tune(optax.lbfgs(), 1)
    for rule in (bl.outer.Auto(), bl.outer.LineSearch(), bl.outer.LBFGS()):
        name = type(rule).__name__
        with pytest.raises(ValueError, match=f"{name} decides by the outer value"):
            rule.update(jnp.ones(2), rule.init(jnp.ones(2)), jnp.ones(2))
    for make, message in [
        (lambda: bl.outer.LineSearch(tolerance=1.0), r"tol must lie in \[0, 1\)"),
        (lambda: bl.outer.LineSearch(decay=1.1), "decay must be at most 1"),
        (lambda: bl.outer.Polyak(scaling=0.0), "scaling must be a positive"),
        (lambda: bl.outer.AdaGradNorm(-1.0), "scale must be a positive"),
        (lambda: bl.outer.DoG(0.0), "first must be a positive"),
        (lambda: bl.outer.Auto(memory=0), "memory must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
