"""The outer loop as a compiled block of steps that stops by itself when the solver diverges."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bilevel.adaptive import Adaptive, Work, columns, observe
from bilevel.curvature import outgrown
from bilevel.estimate import Estimate, Lower
from bilevel.estimators.base import Estimator, NamesVariables, fresh, full_gradient
from bilevel.lazily import only_if
from bilevel.problem import Data, Problem, examples
from bilevel.trees import PyTree, all_finite, norm, zeros_like

Record = Callable[[PyTree, PyTree, Estimate], dict[str, Array]]


@dataclass(frozen=True)
class State:
    """All that evolves in a run: checkpoint this and nothing else.

    Parameters
    ----------
    step : ``()`` int32, outer steps done.
    hyper, estimate : the last hyperparameters that were evaluated, and their estimate; the update
        that follows from them is made first thing in the next step, so a state is always good.
    outer : the outer transformation's state; ``lower`` : the lower level; ``key`` : the run's key.
    start : the start params (a cold start returns to them).
    scale : ``()``, size of the inner gradient where the run began, noise of single examples
        included; ``floor``, ``()``, the recent level of the inner residual: the two yardsticks for
        divergence.
    work : :class:`Work`; how much of it the inner level does.
    """

    step: Array
    hyper: PyTree
    estimate: Estimate
    outer: PyTree
    lower: Lower
    key: Array
    start: PyTree
    scale: Array
    floor: Array
    work: Work


@dataclass(frozen=True)
class Stop:
    """Why a block ended early: flag, and the numbers of the step that was refused, all ``()``.

    ``astray`` names the variables of an estimator that moves several, and flags the culprit.
    """

    diverged: Array
    value: Array
    residual: Array
    previous: Array
    astray: dict[str, Array]


for _node in (State, Stop):
    jax.tree_util.register_dataclass(_node)


def begin(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
) -> State:
    """The state before the first step."""
    lower = fresh(problem, estimator, hyper, params, data, key)
    shapes, _ = jax.eval_shape(lambda x: estimator.step(problem, hyper, x, data, key), lower)
    step = jnp.zeros((), jnp.int32)
    scale = gradient_scale(problem, hyper, params, data)
    estimate = zeros_like(shapes)
    floor = _residual(estimate)
    work = Work.least(hyper)
    return State(step, hyper, estimate, tx.init(hyper), lower, key, params, scale, floor, work)


def gradient_scale(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> Array:
    """Largest of the inner gradient's norm and that of up to 16 single examples; ``()``."""
    some = min(examples(data.inner), 16)

    def size(batch: PyTree) -> Array:
        return norm(jax.grad(problem.inner)(params, hyper, batch))

    singles = jax.tree.map(lambda leaf: leaf[:some, None], data.inner)
    return jnp.maximum(size(data.inner), jnp.max(jax.vmap(size)(singles)))


def update(tx: Any, state: State) -> tuple[PyTree, PyTree]:
    """``(hyper, outer state)`` after the update that the last estimate asks for."""
    updates, outer = tx.update(state.estimate.grad, state.outer, state.hyper)
    return optax.apply_updates(state.hyper, updates), outer


def outer_step(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    data: Data,
    state: State,
    key: Array,
    *,
    warm_start: bool,
    limit: Array,
) -> tuple[State, Stop]:
    """Update ``hyper``, estimate there; the state advances even if the solver diverged."""
    first = state.step == 0
    hyper, outer = jax.lax.cond(
        first, lambda: (state.hyper, state.outer), lambda: update(tx, state)
    )
    lower = state.lower
    if not warm_start:
        cold = fresh(problem, estimator, hyper, state.start, data, key)
        lower = jax.tree.map(lambda x, y: x.astype(y.dtype), cold, state.lower)
    estimate, after = estimator.step(problem, hyper, lower, data, key)
    solver = getattr(estimator, "solver", None)
    diverged = _diverged(problem, solver, hyper, state, lower, estimate, after, data, limit)
    lost = _astray(estimator, estimate, after, limit)
    diverged = jnp.any(jnp.stack([diverged, *lost.values()]))
    residual = _residual(estimate)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        hyper=hyper,
        estimate=estimate,
        outer=outer,
        lower=after,
        floor=jnp.maximum(residual, 0.9 * state.floor),
    )
    stop = Stop(diverged, estimate.value, residual, _residual(state.estimate), lost)
    return new, stop


def _astray(estimator: Any, estimate: Estimate, after: Lower, limit: Array) -> dict[str, Array]:
    several = isinstance(estimator, NamesVariables)
    return estimator.astray(estimate, after, limit) if several else {}


def _residual(estimate: Estimate) -> Array:
    residual = estimate.evidence.inner_residual
    return jnp.zeros((), jnp.result_type(float)) if residual is None else residual


def _diverged(
    problem: Problem,
    solver: Any,
    hyper: PyTree,
    state: State,
    before: Lower,
    estimate: Estimate,
    after: Lower,
    data: Data,
    limit: Array,
) -> Array:
    """Non-finite numbers; a gradient ``limit`` times its scale; a sudden tenfold growth; or any
    growth above the start's gradient where the curvature exceeds what the solver can contract.

    The scale is the larger of two: where the run began, and at the start params with today's
    ``hyper``, which may have brought the gradient into being (learned targets that start at 0).
    The growth must exceed both the recent floor of the residual and the gradient that this step
    began with, so that neither SGD's noise nor a large move of ``hyper`` is mistaken for it. Below
    a residual of 1e-3 growth does no harm; in the first steps, when the floor is not yet known,
    only growth above the noise of single examples counts. A residual that stands as it was, because
    the estimator measures it every so many calls, is not looked into again.
    """
    finite = all_finite((estimate.value, estimate.grad, after.params))
    residual = _residual(estimate)
    grown = (state.step > 0) & (residual > 1e-3) & (residual > 10 * state.floor)
    new = residual != _residual(state.estimate)
    suspect = (new & (grown | (residual > 1))) | ~jnp.isfinite(residual)

    def size(params: PyTree) -> Array:
        return norm(full_gradient(problem, hyper, params, data))

    def confirm() -> Array:
        begun, end = size(before.params), size(after.params)
        scale = jnp.maximum(state.scale, gradient_scale(problem, hyper, state.start, data))
        known = (state.step >= 3) | (end > scale)
        sudden = grown & known & (end > 10 * begun)
        worse = (end > begun) & (residual > 1)
        unstable = outgrown(problem, solver, hyper, after, data, state.key, worse)
        return sudden | unstable | (end > limit * scale) | ~jnp.isfinite(end)

    return ~finite | only_if(suspect, confirm, jnp.array(False))


def block(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    data: Data,
    state: State,
    count: Array,
    *,
    length: int,
    warm_start: bool,
    limit: Array,
    record: Record | None,
    adaptive: Adaptive | None = None,
) -> tuple[State, Stop, dict[str, Array]]:
    """Up to ``count <= length`` outer steps; rows of history that were not reached are NaN.

    If ``adaptive``, it also ends where the inner work is to grow, which is the caller's to do.
    Where a step diverged, those before it are done again: to keep each state until its successor
    has been judged would copy it at every step, tables of minibatch gradients included.
    """
    begun, keys = state, _keys(state, length)

    def row(state: State) -> dict[str, Array]:
        evidence = state.estimate.evidence
        values = {"value": state.estimate.value, "grad_norm": norm(state.estimate.grad)}
        for name in ("inner_residual", "linear_residual"):
            if (entry := getattr(evidence, name)) is not None:
                values[name] = entry
        values |= {name: jnp.asarray(n) for name, n in evidence.counts._asdict().items()}
        if record is not None:
            values |= record(state.hyper, state.lower.params, state.estimate)
        return values | columns(adaptive, state.work, state.estimate)

    def unfinished(carry: Any) -> Array:
        state, stop, _, k, count = carry
        return (k < count) & ~stop.diverged & (state.work.level == begun.work.level)

    def advance(carry: Any) -> Any:
        state, _, history, k, count = carry
        state, stop = outer_step(
            problem, estimator, tx, data, state, keys[k], warm_start=warm_start, limit=limit
        )
        history = jax.tree.map(lambda rows, x: rows.at[k].set(x), history, row(state))
        work = observe(adaptive, state.work, state.estimate)
        return dataclasses.replace(state, work=work), stop, history, k + 1, count

    def attempt(carry: Any) -> Any:
        _, _, first, _, count = carry
        state, stop, history, k, _ = jax.lax.while_loop(
            unfinished, advance, (begun, going, blank, jnp.zeros((), jnp.int32), count)
        )
        first = jax.tree.map(partial(jnp.where, first.diverged), first, stop)
        return state, history, first, stop.diverged, k - 1

    blank = jax.tree.map(
        lambda s: jnp.full((length, *s.shape), _blank(s.dtype), s.dtype), jax.eval_shape(row, state)
    )
    residual = _residual(state.estimate)
    lost = jax.tree.map(jnp.zeros_like, _astray(estimator, state.estimate, state.lower, limit))
    going = Stop(jnp.array(False), state.estimate.value, residual, residual, lost)
    carry = (state, blank, going, jnp.array(True), jnp.asarray(count, jnp.int32))
    state, history, stop, _, _ = jax.lax.while_loop(lambda carry: carry[3], attempt, carry)
    return state, stop, history


def _keys(state: State, length: int) -> Array:
    """Those of the next steps, all at once: one by one they cost more than a small step does."""
    return jax.vmap(partial(jax.random.fold_in, state.key))(state.step + jnp.arange(length))


def _blank(dtype: Any) -> Any:
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0
