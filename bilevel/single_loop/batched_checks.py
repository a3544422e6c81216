"""Several moves, then one look: for estimators whose moves are as cheap as a look."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Evidence, MonitoredEstimator, bind_losses
from bilevel.outer import Backtracks, find_capability
from bilevel.tuning import (
    ROW,
    Block,
    HistoryRows,
    Loop,
    Record,
    State,
    Stop,
    columns_of,
    unwritten_rows,
    write_row,
)
from bilevel.utils import PyTree

_STRIDE = 16  # moves between two looks
_SETTLE = 4  # but not of the first ones
_DONE = 3


class UncheckedCarry(NamedTuple):
    """What changes while a block is made; ``k`` rows of the history are written."""

    state: State
    stop: Stop
    rows: HistoryRows
    k: Array


def can_batch_checks(loop: Loop) -> bool:
    """Return whether nothing but the look needs to see every single move."""
    records = all(isinstance(hook, Record) for hook in loop.hooks)
    comes_back = find_capability(loop.outer, Backtracks) is not None
    return loop.warm_start and records and not comes_back


def run_batched(
    loop: Loop, estimator: MonitoredEstimator, state: State, count: Array | int, length: int
) -> Block:
    """Return ``(state, stop, history)`` after up to ``count`` moves, looked at now and then.

    To keep each state until a look has judged it would copy it, tables of minibatch gradients
    included. So where the estimator diverged the block is made again: first with a look at every
    move, to find the first bad one, then up to the move before it.
    """
    begun = state
    keys = jax.vmap(partial(jax.random.fold_in, state.key))(state.step + jnp.arange(length))
    like, going = loop.blank(state)
    empty = unwritten_rows(like, length)

    def attempt(carry: Any) -> Any:
        _, _, stop, phase, count = carry

        def unfinished(made: UncheckedCarry) -> Array:
            return (made.k < count) & ~made.stop.diverged

        advance = partial(run_unchecked, loop, estimator, keys, count, phase > 0)
        start = UncheckedCarry(begun, going, empty, jnp.zeros((), ROW))
        state, new, rows, k = jax.lax.while_loop(unfinished, advance, start)
        stop = _selected(new.diverged, new, stop)
        count = jnp.where(phase == 0, k, k - 1)
        return state, rows, stop, jnp.where(stop.diverged, phase + 1, _DONE), count

    # Phases: batched; if that diverged, move by move, strictly; then up to the move before.
    carry = (state, empty, going, jnp.zeros((), jnp.int32), jnp.asarray(count, ROW))
    state, rows, stop, _, _ = jax.lax.while_loop(lambda c: c[3] < _DONE, attempt, carry)
    return state, stop, columns_of(rows, like)


def run_unchecked(
    loop: Loop,
    estimator: MonitoredEstimator,
    keys: Array,
    count: Array,
    strict: Array,
    made: UncheckedCarry,
) -> UncheckedCarry:
    """Return the moves up to the next look, and the look; one move if ``strict``.

    One is strict only where divergence is known to follow: then what has grown by the root of the
    limit is its beginning.
    """
    before, _, rows, k = made
    end = jnp.where(strict, k + 1, jnp.minimum(k + steps_to_next_check(before.step), count))

    def move(carry: Any) -> Any:
        state, _, rows, k = carry
        moved, _ = loop.propose(state, keys[k], unchecked=True)
        rows = write_row(rows, k, loop.row(loop.seen(moved, moved.estimate)))
        return without_evidence(moved), jnp.stack(moved.estimate.evidence.counts), rows, k + 1

    counts = jnp.stack(before.estimate.evidence.counts)
    bare, counts, rows, k = jax.lax.while_loop(
        lambda carry: carry[3] < end, move, (without_evidence(before), counts, rows, k)
    )
    evidence = replace(before.estimate.evidence, counts=Counts(*counts))
    state = _with_evidence(bare, evidence)
    problem = bind_losses(loop.problem, keys[k - 1])
    estimate, lower = estimator.measure(
        problem, state.hyper, before.lower, state.estimate, state.lower, loop.data
    )
    limit = loop.divergence.limit
    limit = jnp.where(strict, jnp.minimum(limit, jnp.sqrt(limit)), limit)
    looked = replace(state, estimate=estimate, lower=lower)
    looked, stop, _ = loop.judge(before, before.lower, looked, keys[k - 1], limit)
    # A block may end anywhere: a look that it forces leaves no trace, so that a run that is cut
    # goes on bit for bit.
    due = (state.step <= _SETTLE) | (state.step % _STRIDE == 0)
    state = _selected(strict | due, looked, state)
    rows = write_row(rows, k - 1, loop.row(loop.seen(state, state.estimate)))
    return UncheckedCarry(state, stop, rows, k)


def steps_to_next_check(step: Array) -> Array:
    """Return the moves to the next look: one each of the first few, then after every so many."""
    return jnp.where(step < _SETTLE, 1, _STRIDE - step % _STRIDE).astype(ROW)


def without_evidence(state: State) -> State:
    """Return the state without what no move changes or reads: XLA would copy it at every one."""
    nothing: Any = None
    return _with_evidence(state, Evidence(counts=nothing))


def _with_evidence(state: State, evidence: Evidence) -> State:
    return replace(state, estimate=replace(state.estimate, evidence=evidence))


def _selected(flag: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return ``new`` or ``old``; what is the same object in both is not selected between."""
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(flag, x, y), new, old)
