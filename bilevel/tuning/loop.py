"""The outer loop as a compiled block of steps that stops by itself when the solver diverges."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.estimators.base import Estimator
from bilevel.outer.base import TracksBest
from bilevel.outer.coordinates import to_coordinates, unwrap, update
from bilevel.tuning import early_stopping
from bilevel.tuning.adaptive import Adaptive, observe
from bilevel.tuning.batched_checks import ROW, selected, stride, takes_strides
from bilevel.tuning.divergence import diverged_variables
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.history import blank, columns_of, written
from bilevel.tuning.state import State, Stop, inner_residual
from bilevel.tuning.step import Record as Record
from bilevel.tuning.step import Run
from bilevel.utils import PyTree

_DONE = 3


def proposed(tx: Any, state: State) -> PyTree:
    """The hyperparameters that the last estimate asks to evaluate next."""
    return update(tx, state.estimate, state.outer, state.hyper)[0]


def final(tx: Any, state: State, diverged: Array) -> PyTree:
    """Those that a run ends with: the best seen of a rule that keeps it, or one more update's."""
    if isinstance(unwrap(tx), TracksBest):
        best, _ = tx.best(state.outer, state.hyper, state.estimate.value)
        return jax.tree.map(lambda x, y: jnp.where(state.step > 0, x, y), best, state.hyper)
    keep = diverged | (state.step == 0)
    return jax.lax.cond(keep, lambda: state.hyper, lambda: proposed(tx, state))


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
    Where a step diverged, those before it are done again: to keep each state until its successor
    has been judged would copy it at every step, tables of minibatch gradients included. Where it
    was one of a stride, the block is done again before, with a judgement on every step.
    """
    run = Run(
        problem, estimator, tx, data, _keys(state, length), limit, warm_start, record, adaptive,
        stopping,
    )  # fmt: skip
    begun, strides = state, takes_strides(run)

    def unfinished(carry: Any) -> Array:
        state, stop, _, k, count, _ = carry
        ended = stop.diverged | early_stopping.over(stopping, state)
        return (k < count) & ~ended & (state.work.level == begun.work.level)

    def attempt(carry: Any) -> Any:
        _, _, stop, phase, count = carry
        begin = (begun, going, empty, jnp.zeros((), ROW), count, phase > 0)
        further = partial(stride if strides else _advance, run)
        state, new, history, k, _, _ = jax.lax.while_loop(unfinished, further, begin)
        stop = selected(new.diverged, new, stop)
        count = jnp.where(phase == 0, k, k - 1)
        return state, history, stop, jnp.where(stop.diverged, phase + 1, _DONE), count

    like = jax.eval_shape(run.row, state, state.estimate)
    empty = blank(like, length)
    residual = inner_residual(state.estimate)
    lost = jax.tree.map(
        jnp.zeros_like, diverged_variables(estimator, state.estimate, state.lower, limit)
    )
    going = Stop(jnp.array(False), state.estimate.value, residual, residual, lost)
    # Phases: by strides; if that diverged, step by step, strictly; then up to the step before.
    phase = jnp.asarray(0 if strides else 1, jnp.int32)
    carry = (state, empty, going, phase, jnp.asarray(count, ROW))
    state, history, stop, _, _ = jax.lax.while_loop(lambda c: c[3] < _DONE, attempt, carry)
    return state, stop, columns_of(history, like)


def _advance(run: Run, carry: Any) -> Any:
    """One step, judged at once."""
    before, _, history, k, count, careful = carry
    state, began = run.step(before, k)
    state, stop, made = run.judge(before, began, state, k, run.limit)
    state = early_stopping.observe(run.stopping, state)
    history = written(history, k, run.row(state, made))
    work = observe(run.adaptive, state.work, to_coordinates(run.tx, state.estimate, state.outer))
    return dataclasses.replace(state, work=work), stop, history, k + 1, count, careful


def _keys(state: State, length: int) -> Array:
    """Those of the next steps, all at once: one by one they cost more than a small step does."""
    return jax.vmap(partial(jax.random.fold_in, state.key))(state.step + jnp.arange(length))
