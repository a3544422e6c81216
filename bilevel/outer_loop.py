"""The outer loop as a compiled block of steps that stops by itself when the solver diverges."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel import early_stopping
from bilevel.adaptive import Adaptive, columns, observe
from bilevel.divergence import astray, diverged
from bilevel.early_stopping import EarlyStopping
from bilevel.estimate import Estimate
from bilevel.estimators.base import Estimator, fresh, of_one_call, solver_of
from bilevel.outer.base import Keeps, Loosens, Retreats
from bilevel.outer.placed import as_moved, columns_of_space, inside, update
from bilevel.problem import Data, Problem
from bilevel.run_state import State, Stop, inner_residual
from bilevel.trees import PyTree, norm

Record = Callable[[PyTree, PyTree, Estimate], dict[str, Array]]


def proposed(tx: Any, state: State) -> PyTree:
    """The hyperparameters that the last estimate asks to evaluate next."""
    return update(tx, state.estimate, state.outer, state.hyper)[0]


def final(tx: Any, state: State, diverged: Array) -> PyTree:
    """Those that a run ends with: the best seen of a rule that keeps it, or one more update's."""
    if isinstance(inside(tx), Keeps):
        best, _ = tx.best(state.outer, state.hyper, state.estimate.value)
        return jax.tree.map(lambda x, y: jnp.where(state.step > 0, x, y), best, state.hyper)
    keep = diverged | (state.step == 0)
    return jax.lax.cond(keep, lambda: state.hyper, lambda: proposed(tx, state))


def outer_step(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    data: Data,
    state: State,
    *,
    warm_start: bool,
    limit: Array,
) -> tuple[State, Stop, Estimate]:
    """Update ``hyper``, estimate there; the state only advances if the solver did not diverge.

    If it did, and the rule knows how to come back, the state is the old one with a shorter update
    to follow. The estimate is the one made, without value and gradient if it was refused so.
    """
    first = state.step == 0
    hyper, outer = jax.lax.cond(
        first,
        lambda: (state.hyper, state.outer),
        lambda: update(tx, state.estimate, state.outer, state.hyper),
    )
    if isinstance(inside(tx), Loosens):
        estimator = tx.loosen(estimator, outer)
    key = jax.random.fold_in(state.key, state.step)
    lower = state.lower
    if not warm_start:
        cold = fresh(problem, estimator, hyper, state.start, data, key)
        lower = jax.tree.map(lambda x, y: x.astype(y.dtype), cold, state.lower)
    estimate, after = estimator.step(problem, hyper, lower, data, key)
    seen = of_one_call(estimator, data, key)
    solver = solver_of(estimator, problem, hyper, after.params, seen)
    lost = astray(estimator, estimate, after, limit)
    bad = diverged(problem, solver, hyper, state, lower, estimate, after, seen, limit)
    bad = jnp.any(jnp.stack([bad, *lost.values()]))
    residual = inner_residual(estimate)
    new = dataclasses.replace(
        state,
        step=state.step + 1,
        hyper=hyper,
        estimate=estimate,
        outer=outer,
        lower=after,
        floor=jnp.maximum(residual, 0.9 * state.floor),
    )
    old, final = state, bad
    if isinstance(inside(tx), Retreats):
        back, hopeful = tx.retreat(state.outer, outer, hyper)
        again = bad & hopeful & ~first
        shorter = jax.tree.map(lambda x, y: jnp.where(again, x, y), back, state.outer)
        old = dataclasses.replace(state, outer=shorter, step=state.step + again)
        final = bad & ~again
        nothing = jax.tree.map(
            lambda x: jnp.where(again, jnp.nan, x), (estimate.value, estimate.grad)
        )
        estimate = Estimate(*nothing, estimate.evidence)
    stop = Stop(final, estimate.value, residual, inner_residual(state.estimate), lost)
    return jax.lax.cond(bad, lambda: old, lambda: new), stop, estimate


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

    def row(state: State, made: Estimate) -> dict[str, Array]:
        values = _row(tx, record, state, made) | early_stopping.columns(stopping, state)
        return values | columns(adaptive, state.work, as_moved(tx, made, state.outer))

    def unfinished(carry: Any) -> Array:
        state, stop, _, k = carry
        ended = stop.diverged | early_stopping.over(stopping, state)
        return (k < count) & ~ended & (state.work.level == begun)

    def advance(carry: Any) -> Any:
        state, _, history, k = carry
        state, stop, made = outer_step(
            problem, estimator, tx, data, state, warm_start=warm_start, limit=limit
        )
        judged = early_stopping.observe(stopping, state)
        seen = as_moved(tx, state.estimate, state.outer)
        written = jax.tree.map(lambda rows, x: rows.at[k].set(x), history, row(judged, made))
        history, work, best = jax.tree.map(
            lambda new, old: jnp.where(stop.diverged, old, new),
            (written, observe(adaptive, state.work, seen), judged.best),
            (history, state.work, state.best),
        )
        return dataclasses.replace(state, work=work, best=best), stop, history, k + 1

    history = jax.tree.map(
        lambda s: jnp.full((length, *s.shape), _blank(s.dtype), s.dtype),
        jax.eval_shape(row, state, state.estimate),
    )
    residual = inner_residual(state.estimate)
    lost = jax.tree.map(jnp.zeros_like, astray(estimator, state.estimate, state.lower, limit))
    stop = Stop(jnp.array(False), state.estimate.value, residual, residual, lost)
    state, stop, history, _ = jax.lax.while_loop(
        unfinished, advance, (state, stop, history, jnp.zeros((), jnp.int32))
    )
    return state, stop, history


def _row(tx: Any, record: Record | None, state: State, made: Estimate) -> dict[str, Array]:
    """What the history says of a step whose estimate is ``made``."""
    evidence = made.evidence
    values = {"value": made.value, "grad_norm": norm(made.grad)}
    if isinstance(inside(tx), Keeps):
        values["best"] = tx.best(state.outer, state.hyper, state.estimate.value)[1]
    for name in ("inner_residual", "linear_residual"):
        if (entry := getattr(evidence, name)) is not None:
            values[name] = entry
    values |= {name: jnp.asarray(n) for name, n in evidence.counts._asdict().items()}
    if record is not None:
        values |= record(state.hyper, state.lower.params, state.estimate)
    return values | columns_of_space(tx, as_moved(tx, made, state.outer))


def _blank(dtype: Any) -> Any:
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0
