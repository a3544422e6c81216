"""`tune` warns before the run of a step size that must diverge, and of no other."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.estimators.base import init_filled
from bilevel.solvers.stability import constant_stability_limit
from bilevel.testing import Case, dense_curvature, logistic, ridge
from bilevel.tuning.diagnosis import step_size_warning

CASE = ridge(seed=0)
LARGEST = dense_curvature(CASE.problem, CASE.hyper, CASE.params, CASE.data)[1]
MARKED = CASE.problem
UNMARKED = dataclasses.replace(CASE.problem, quadratic=False)  # found from the traced program
WITH_PROX = dataclasses.replace(UNMARKED, prox=lambda w, h, step: w)


@partial(jax.jit, static_argnames="problem")
def known(problem: bl.Problem, solver: Any, hyper: Any, params: Any, data: Any, key: Any) -> Any:
    lower = init_filled(problem, bl.Implicit(solver, steps=1), hyper, params, data, key)
    return constant_stability_limit(problem, solver, hyper, lower, data, key)


def foreseen(solver: Any, problem: bl.Problem = UNMARKED, case: Case = CASE) -> str | None:
    """What `tune` would say before its first step."""
    measured = known(problem, solver, case.hyper, case.params, case.data, jax.random.key(0))
    return None if measured is None else step_size_warning(*measured)


TOO_LARGE = {
    "descent": (lambda f: bl.GradientDescent(f * 2 / LARGEST), UNMARKED),
    "marked": (lambda f: bl.GradientDescent(f * 2 / LARGEST), MARKED),
    "minibatch": (lambda f: bl.SGD(f * 2 / LARGEST, batch_size=5), UNMARKED),
    "momentum": (lambda f: bl.SGD(f * 2 * 1.5 / LARGEST, momentum=0.5), UNMARKED),
    "nesterov": (lambda f: bl.SGD(f * 1.5 / LARGEST, momentum=0.5, nesterov=True), UNMARKED),
    "of hyper": (lambda f: bl.SGD(lambda k, h: f * 2 / LARGEST + 0 * h[0]), UNMARKED),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_the_limit_is_where_theory_puts_it(name: str) -> None:
    """``2 (1 + momentum) / L``, Nesterov's over ``1 + 2 momentum``: 2 % above, and at it."""
    make, problem = TOO_LARGE[name]
    text = foreseen(make(1.02), problem)
    assert text is not None
    assert f"the largest inner curvature is {LARGEST:.3g}"[:-1] in text
    assert "at least 1.1 times smaller" in text
    assert foreseen(make(1.0), problem) is None


NOT_KNOWN = {
    "a schedule that comes down": (bl.SGD(lambda k: 100 / (1 + k)), UNMARKED, CASE),
    "the theory's schedule": (bl.SGD(bl.InverseTime(mu=1e-3, L=1e-3)), UNMARKED, CASE),
    "a curvature that changes": (bl.SGD(100.0), logistic(0).problem, logistic(0)),
    "the smooth part alone": (bl.ProximalGradient(100.0), WITH_PROX, CASE),
    "a solver that does not say": (bl.Optax(optax.sgd(100.0)), UNMARKED, CASE),
}


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_cannot_be_known_is_not_said(name: str) -> None:
    assert foreseen(*NOT_KNOWN[name]) is None


def test_tune_warns_once_at_its_start_and_goes_on() -> None:
    """One step per call, 2 % above the limit: nothing looks like divergence for a while."""
    estimator = bl.Implicit(bl.GradientDescent(1.02 * 2 / LARGEST), steps=1)
    run = (optax.sgd(1e-3), CASE.hyper, CASE.params, CASE.data)
    with pytest.warns(bl.DivergenceWarning, match="above the stability limit") as caught:
        first = bl.tune(UNMARKED, estimator, *run, steps=2, key=jax.random.key(0))
    assert len(caught) == 1
    assert not first.diverged
    bl.tune(UNMARKED, estimator, *run, steps=1, state=first.state)  # warnings are errors

    def steep(scale: Any) -> Any:
        return bl.tune(
            UNMARKED,
            estimator,
            run[0],
            CASE.hyper,
            scale * CASE.params,
            CASE.data,
            steps=1,
            key=jax.random.key(0),
        ).params

    assert np.isfinite(jax.jit(steep)(jnp.ones(()))).all()
