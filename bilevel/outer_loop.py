"""The outer loop as a compiled block of steps that stops by itself when the solver diverges."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel import early_stopping
from bilevel.adaptive import Adaptive, columns, observe
from bilevel.divergence import astray
from bilevel.early_stopping import EarlyStopping
from bilevel.estimate import Counts, Estimate, Evidence, Lower
from bilevel.estimators.base import Estimator, NamesVariables
from bilevel.history import blank, columns_of, written
from bilevel.outer.base import Keeps, Retreats
from bilevel.outer.placed import as_moved, columns_of_space, inside, update
from bilevel.outer_step import advanced, judged
from bilevel.problem import Data, Problem
from bilevel.run_state import State, Stop, inner_residual
from bilevel.trees import PyTree, norm

_STRIDE = 16  # moves between two looks at an estimator that names its variables
_SETTLE = 4  # but not of the first ones
_DONE = 3
_ROW = jnp.uint32  # of rows' numbers: a signed index is first asked whether it is negative

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
    begun, keys = state, _keys(state, length)
    plain = warm_start and stopping is None and adaptive is None
    strides = (
        plain and isinstance(estimator, NamesVariables) and not isinstance(inside(tx), Retreats)
    )

    def row(state: State, made: Estimate) -> dict[str, Array]:
        values = _row(tx, record, state, made) | early_stopping.columns(stopping, state)
        return values | columns(adaptive, state.work, as_moved(tx, made, state.outer))

    def unfinished(carry: Any) -> Array:
        state, stop, _, k, count, _ = carry
        ended = stop.diverged | early_stopping.over(stopping, state)
        return (k < count) & ~ended & (state.work.level == begun.work.level)

    def step(state: State, k: Array) -> tuple[State, Lower]:
        return advanced(problem, estimator, tx, data, state, keys[k], warm_start)

    def judge(before: State, began: Lower, state: State, k: Array) -> Any:
        return judged(problem, estimator, tx, data, before, began, state, keys[k], limit)

    def advance(carry: Any) -> Any:
        before, _, history, k, count, careful = carry
        state, began = step(before, k)
        state, stop, made = judge(before, began, state, k)
        state = early_stopping.observe(stopping, state)
        history = written(history, k, row(state, made))
        work = observe(adaptive, state.work, as_moved(tx, state.estimate, state.outer))
        return dataclasses.replace(state, work=work), stop, history, k + 1, count, careful

    def stride(carry: Any) -> Any:
        before, _, history, k, count, careful = carry
        end = jnp.where(careful, k + 1, jnp.minimum(k + _to_look(before.step), count))

        def move(carry: Any) -> Any:
            state, _, history, k = carry
            made, _ = step(state, k)
            history = written(history, k, row(made, made.estimate))
            return _bare(made), jnp.stack(made.estimate.evidence.counts), history, k + 1

        counts = jnp.stack(before.estimate.evidence.counts)
        bare, counts, history, k = jax.lax.while_loop(
            lambda carry: carry[3] < end, move, (_bare(before), counts, history, k)
        )
        evidence = dataclasses.replace(before.estimate.evidence, counts=Counts(*counts))
        state = _with_evidence(bare, evidence)
        looked, stop, _ = judge(before, before.lower, state, k - 1)
        # A block may end anywhere: a look that it forces leaves no trace, so that a run that is
        # cut goes on bit for bit.
        due = (state.step <= _SETTLE) | (state.step % _STRIDE == 0)
        state = _where(careful | due, looked, state)
        history = written(history, k - 1, row(state, state.estimate))
        return state, stop, history, k, count, careful

    def attempt(carry: Any) -> Any:
        _, _, stop, phase, count = carry
        begin = (begun, going, empty, jnp.zeros((), _ROW), count, phase > 0)
        state, new, history, k, _, _ = jax.lax.while_loop(
            unfinished, stride if strides else advance, begin
        )
        stop = _where(new.diverged, new, stop)
        count = jnp.where(phase == 0, k, k - 1)
        return state, history, stop, jnp.where(stop.diverged, phase + 1, _DONE), count

    like = jax.eval_shape(row, state, state.estimate)
    empty = blank(like, length)
    residual = inner_residual(state.estimate)
    lost = jax.tree.map(jnp.zeros_like, astray(estimator, state.estimate, state.lower, limit))
    going = Stop(jnp.array(False), state.estimate.value, residual, residual, lost)
    # Phases: by strides; if that diverged, step by step up to there; then up to the step before.
    phase = jnp.asarray(0 if strides else 1, jnp.int32)
    carry = (state, empty, going, phase, jnp.asarray(count, _ROW))
    state, history, stop, _, _ = jax.lax.while_loop(lambda c: c[3] < _DONE, attempt, carry)
    return state, stop, columns_of(history, like)


def _to_look(step: Array) -> Array:
    """Moves to the next look: after each of the first few, then after every so many."""
    return jnp.where(step < _SETTLE, 1, _STRIDE - step % _STRIDE).astype(_ROW)


def _bare(state: State) -> State:
    """Without what no move changes or reads: XLA would copy it at every one."""
    return _with_evidence(state, Evidence(counts=None))


def _with_evidence(state: State, evidence: Evidence) -> State:
    estimate = dataclasses.replace(state.estimate, evidence=evidence)
    return dataclasses.replace(state, estimate=estimate)


def _where(flag: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` or ``old``; what is the same object in both is not selected between."""
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(flag, x, y), new, old)


def _keys(state: State, length: int) -> Array:
    """Those of the next steps, all at once: one by one they cost more than a small step does."""
    return jax.vmap(partial(jax.random.fold_in, state.key))(state.step + jnp.arange(length))


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
