"""When a run has diverged: rules that neither noise nor a large move of ``hyper`` sets off."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Data,
    Estimate,
    Estimator,
    InnerState,
    MonitoredEstimator,
    Problem,
    space_rows,
)
from bilevel.estimators import full_gradient
from bilevel.outer import Backtracks
from bilevel.solvers import Solver, exceeds_stability_limit
from bilevel.tuning.state import Divergence, State, Stop
from bilevel.utils import PyTree, all_finite, cond_without_select, norm


def gradient_scale(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> Array:
    """Return the largest of the inner gradient's norm and that of up to 16 single examples.

    Where ``problem.start`` sets the start point, it is taken there: ``params`` are a placeholder.
    """
    params, data = start_point(problem, hyper, params), space_rows(problem, data)

    def size(batch: PyTree) -> Array:
        return norm(jax.grad(problem.inner)(params, hyper, batch))

    singles = jax.tree.map(lambda x: x[None] if problem.is_equation else x[:16, None], data.inner)
    return jnp.maximum(size(data.inner), jnp.max(jax.vmap(size)(singles)))


def start_point(problem: Problem, hyper: PyTree, params: PyTree) -> PyTree:
    """Return where a call begins."""
    return params if problem.start is None else problem.start(hyper, params)


def reported_residual(estimate: Estimate) -> Array:
    """Return the estimate's inner residual, 0 where it reports none; ``()``."""
    residual = estimate.evidence.inner_residual
    return jnp.zeros((), jnp.result_type(float)) if residual is None else residual


def diverged_variables(
    estimator: Estimator, estimate: Estimate, after: InnerState, limit: Array | float
) -> dict[str, Array]:
    """Return whether each variable of an estimator that moves several has left all bounds."""
    several = isinstance(estimator, MonitoredEstimator)
    return estimator.diverged(estimate, after, limit) if several else {}


def going_on(estimator: Estimator, state: State, divergence: Divergence) -> Stop:
    """Return what is said of a run that nothing has stopped."""
    residual, value = reported_residual(state.estimate), state.estimate.value
    lost = diverged_variables(estimator, state.estimate, state.lower, divergence.limit)
    return Stop(jnp.array(False), value, residual, residual, jax.tree.map(jnp.zeros_like, lost))


def has_diverged(
    problem: Problem,
    solver: Solver | None,
    hyper: PyTree,
    state: State,
    before: InnerState,
    estimate: Estimate,
    after: InnerState,
    data: Data,
    limit: Array | float,
) -> Array:
    """Return whether a step has diverged; ``()``, boolean.

    It has with non-finite numbers; a gradient ``limit`` times its scale; a sudden tenfold growth;
    or any growth above the start's gradient where the curvature exceeds what the solver contracts.

    The scale is the larger of two: where the run began, and at the start params with today's
    ``hyper``, which may have brought the gradient into being (learned targets that start at 0).
    The growth must exceed both the recent floor of the residual and the gradient that this step
    began with, so that neither SGD's noise nor a large move of ``hyper`` is mistaken for it. Below
    a residual of 1e-3 growth does no harm; in the first steps, when the floor is not yet known,
    only growth above the noise of single examples counts. A residual that stands as it was, because
    the estimator measures it every so many calls, is not looked into again.
    """
    finite = all_finite((estimate.value, estimate.grad, after.params))
    if estimate.evidence.inner_residual is None:  # nothing to look into
        return ~finite
    data, residual = space_rows(problem, data), reported_residual(estimate)
    grown = (state.step > 0) & (residual > 1e-3) & (residual > 10 * state.floor)
    new = residual != reported_residual(state.estimate)
    suspect = (new & (grown | (residual > 1))) | ~jnp.isfinite(residual)

    def size(params: PyTree) -> Array:
        return norm(full_gradient(problem, hyper, params, data))

    def confirm() -> Array:
        begun, end = size(start_point(problem, hyper, before.params)), size(after.params)
        scale = jnp.maximum(state.scale, gradient_scale(problem, hyper, state.start, data))
        sudden = grown & ((state.step >= 3) | (end > scale)) & (end > 10 * begun)
        worse = (end > begun) & (residual > 1)
        unstable = exceeds_stability_limit(problem, solver, hyper, after, data, state.key, worse)
        return sudden | unstable | (end > limit * scale) | ~jnp.isfinite(end)

    return ~finite | cond_without_select(suspect, confirm, jnp.array(False))


def take_back(
    rule: Backtracks, before: State, state: State, stop: Stop
) -> tuple[State, Stop, Estimate]:
    """Return ``(state, stop, estimate)`` of a step by a rule that comes back from divergence.

    Where it can, the state is the one before with a shorter update to follow, and the estimate,
    the one made, has neither value nor gradient.
    """
    estimate, bad = state.estimate, stop.diverged
    back, hopeful = rule.backtrack(before.outer, state.outer, state.hyper)
    again = bad & hopeful & (before.step > 0)
    shorter = jax.tree.map(lambda x, y: jnp.where(again, x, y), back, before.outer)
    old = replace(before, outer=shorter, step=before.step + again)
    value, grad = jax.tree.map(
        lambda x: jnp.where(again, jnp.nan, x), (estimate.value, estimate.grad)
    )
    return (
        jax.lax.cond(bad, lambda: old, lambda: state),
        replace(stop, diverged=bad & ~again),
        replace(estimate, value=value, grad=grad),
    )
