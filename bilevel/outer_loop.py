"""The outer loop as a compiled block of steps that stops by itself when the solver diverges."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel import early_stopping
from bilevel.adaptive import Adaptive, Work, columns, observe
from bilevel.divergence import gradient_scale, has_diverged, residual_of
from bilevel.early_stopping import EarlyStopping
from bilevel.estimate import Estimate, Lower
from bilevel.estimators.base import Estimator, NamesVariables, fresh
from bilevel.problem import Data, Problem
from bilevel.spaces import moving
from bilevel.trees import PyTree, norm, zeros_like

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
    best : by early stopping, ``None`` without.
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
    best: Any = None


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
    floor = residual_of(estimate)
    work = Work.least(hyper)
    return State(step, hyper, estimate, tx.init(hyper), lower, key, params, scale, floor, work)


def update(tx: Any, state: State) -> tuple[PyTree, PyTree]:
    """``(hyper, outer state)`` after the update that the last estimate asks for."""
    return moving.move(tx, state.estimate.grad, state.outer, state.hyper)


def outer_step(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    data: Data,
    state: State,
    *,
    warm_start: bool,
    limit: Array,
) -> tuple[State, Stop]:
    """Update ``hyper``, estimate there; the state only advances if the solver did not diverge."""
    first = state.step == 0
    hyper, outer = jax.lax.cond(
        first, lambda: (state.hyper, state.outer), lambda: update(tx, state)
    )
    key = jax.random.fold_in(state.key, state.step)
    lower = state.lower
    if not warm_start:
        cold = fresh(problem, estimator, hyper, state.start, data, key)
        lower = jax.tree.map(lambda x, y: x.astype(y.dtype), cold, state.lower)
    estimate, after = estimator.step(problem, hyper, lower, data, key)
    solver = getattr(estimator, "solver", None)
    diverged = has_diverged(problem, solver, hyper, state, lower, estimate, after, data, limit)
    lost = _astray(estimator, estimate, after, limit)
    diverged = jnp.any(jnp.stack([diverged, *lost.values()]))
    residual = residual_of(estimate)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        hyper=hyper,
        estimate=estimate,
        outer=outer,
        lower=after,
        floor=jnp.maximum(residual, 0.9 * state.floor),
    )
    stop = Stop(diverged, estimate.value, residual, residual_of(state.estimate), lost)
    return jax.lax.cond(diverged, lambda: state, lambda: new), stop


def _astray(estimator: Any, estimate: Estimate, after: Lower, limit: Array) -> dict[str, Array]:
    several = isinstance(estimator, NamesVariables)
    return estimator.astray(estimate, after, limit) if several else {}


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
    stopping: EarlyStopping | None = None,
) -> tuple[State, Stop, dict[str, Array]]:
    """Up to ``count <= length`` outer steps; rows of history that were not reached are NaN.

    If ``adaptive``, it also ends where the inner work is to grow, which is the caller's to do.
    """
    begun = state.work.level

    def row(state: State) -> dict[str, Array]:
        evidence = state.estimate.evidence
        values = {"value": state.estimate.value, "grad_norm": norm(state.estimate.grad)}
        for name in ("inner_residual", "linear_residual"):
            if (entry := getattr(evidence, name)) is not None:
                values[name] = entry
        values |= {name: jnp.asarray(n) for name, n in evidence.counts._asdict().items()}
        if record is not None:
            values |= record(state.hyper, state.lower.params, state.estimate)
        moved = moving.as_moved(tx, state.estimate, state.outer)
        values |= moving.columns(tx, moved) | early_stopping.columns(stopping, state)
        return values | columns(adaptive, state.work, moved)

    def unfinished(carry: Any) -> Array:
        state, stop, _, k = carry
        ended = stop.diverged | early_stopping.over(stopping, state)
        return (k < count) & ~ended & (state.work.level == begun)

    def advance(carry: Any) -> Any:
        state, _, history, k = carry
        state, stop = outer_step(
            problem, estimator, tx, data, state, warm_start=warm_start, limit=limit
        )
        judged = early_stopping.observe(stopping, state)
        moved = moving.as_moved(tx, state.estimate, state.outer)
        written = jax.tree.map(lambda rows, x: rows.at[k].set(x), history, row(judged))
        history, work, best = jax.tree.map(
            lambda new, old: jnp.where(stop.diverged, old, new),
            (written, observe(adaptive, state.work, moved), judged.best),
            (history, state.work, state.best),
        )
        return dataclasses.replace(state, work=work, best=best), stop, history, k + 1

    history = jax.tree.map(
        lambda s: jnp.full((length, *s.shape), _blank(s.dtype), s.dtype), jax.eval_shape(row, state)
    )
    residual = residual_of(state.estimate)
    lost = jax.tree.map(jnp.zeros_like, _astray(estimator, state.estimate, state.lower, limit))
    stop = Stop(jnp.array(False), state.estimate.value, residual, residual, lost)
    state, stop, history, _ = jax.lax.while_loop(
        unfinished, advance, (state, stop, history, jnp.zeros((), jnp.int32))
    )
    return state, stop, history


def _blank(dtype: Any) -> Any:
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0
