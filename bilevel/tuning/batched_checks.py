"""Several moves, then one look: for estimators whose moves are as cheap as a look."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Evidence
from bilevel.estimators.base import MonitoredEstimator
from bilevel.outer.base import Backtracks
from bilevel.outer.coordinates import unwrap
from bilevel.tuning.history import written
from bilevel.tuning.state import State
from bilevel.tuning.step import Run
from bilevel.utils import PyTree

_STRIDE = 16  # moves between two looks
_SETTLE = 4  # but not of the first ones
ROW = jnp.uint32  # of the rows' numbers: a signed index is first asked whether it is negative


def takes_strides(run: Run) -> bool:
    """Whether nothing but the look needs to see every single move."""
    plain = run.warm_start and run.stopping is None and run.adaptive is None
    comes_back = isinstance(unwrap(run.tx), Backtracks)
    return plain and isinstance(run.estimator, MonitoredEstimator) and not comes_back


def stride(run: Run, carry: Any) -> Any:
    """The moves up to the next look, and the look; one move if ``careful``.

    One is careful only where divergence is known to follow: then what has grown by the root of the
    limit is its beginning.
    """
    before, _, history, k, count, careful = carry
    end = jnp.where(careful, k + 1, jnp.minimum(k + _to_look(before.step), count))

    def move(carry: Any) -> Any:
        state, _, history, k = carry
        made, _ = run.step(state, k)
        history = written(history, k, run.row(made, made.estimate))
        return _bare(made), jnp.stack(made.estimate.evidence.counts), history, k + 1

    counts = jnp.stack(before.estimate.evidence.counts)
    bare, counts, history, k = jax.lax.while_loop(
        lambda carry: carry[3] < end, move, (_bare(before), counts, history, k)
    )
    evidence = dataclasses.replace(before.estimate.evidence, counts=Counts(*counts))
    state = _with_evidence(bare, evidence)
    limit = jnp.where(careful, jnp.minimum(run.limit, jnp.sqrt(run.limit)), run.limit)
    looked, stop, _ = run.judge(before, before.lower, state, k - 1, limit)
    # A block may end anywhere: a look that it forces leaves no trace, so that a run that is cut
    # goes on bit for bit.
    due = (state.step <= _SETTLE) | (state.step % _STRIDE == 0)
    state = selected(careful | due, looked, state)
    history = written(history, k - 1, run.row(state, state.estimate))
    return state, stop, history, k, count, careful


def _to_look(step: Array) -> Array:
    """Moves to the next look: after each of the first few, then after every so many."""
    return jnp.where(step < _SETTLE, 1, _STRIDE - step % _STRIDE).astype(ROW)


def _bare(state: State) -> State:
    """Without what no move changes or reads: XLA would copy it at every one."""
    nothing: Any = None
    return _with_evidence(state, Evidence(counts=nothing))


def _with_evidence(state: State, evidence: Evidence) -> State:
    estimate = dataclasses.replace(state.estimate, evidence=evidence)
    return dataclasses.replace(state, estimate=estimate)


def selected(flag: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` or ``old``; what is the same object in both is not selected between."""
    return jax.tree.map(lambda x, y: x if x is y else jnp.where(flag, x, y), new, old)
