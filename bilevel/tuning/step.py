"""One step of the outer loop, the judgement on it, and its row of the history."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, InnerState, Problem
from bilevel.estimators.base import (
    Estimator,
    MonitoredEstimator,
    data_of_call,
    init_filled,
    solver_of,
)
from bilevel.outer.base import Backtracks, SetsTolerance, TracksBest
from bilevel.outer.coordinates import history_columns, to_coordinates, unwrap, update
from bilevel.tuning import early_stopping
from bilevel.tuning.adaptive import Adaptive, columns
from bilevel.tuning.divergence import diverged, diverged_variables
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.state import State, Stop, inner_residual
from bilevel.utils import PyTree, norm

Record = Callable[[PyTree, PyTree, Estimate], dict[str, Array]]


class Run(NamedTuple):
    """All that does not change while a block is made, and what is done with a state."""

    problem: Problem
    estimator: Estimator
    tx: Any
    data: Data
    keys: Array
    limit: Array
    warm_start: bool
    record: Record | None
    adaptive: Adaptive | None
    stopping: EarlyStopping | None

    def step(self, state: State, k: Array) -> tuple[State, InnerState]:
        """Update ``hyper``, estimate there; and the lower level that the estimate began with.

        Of an estimator that names its variables it is the move alone: ``judge`` looks at it.
        """
        problem, estimator, tx, data = self.problem, self.estimator, self.tx, self.data
        key = self.keys[k]
        first = state.step == 0
        updated = update(tx, state.estimate, state.outer, state.hyper)
        hyper, outer = jax.tree.map(
            lambda old, new: jnp.where(first, old, new), (state.hyper, state.outer), updated
        )
        if isinstance(unwrap(tx), SetsTolerance):
            estimator = tx.set_tolerance(estimator, outer)
        lower = state.lower
        if not self.warm_start:
            cold = init_filled(problem, estimator, hyper, state.start, data, key)
            lower = jax.tree.map(lambda x, y: x.astype(y.dtype), cold, state.lower)
        step = estimator.update if isinstance(estimator, MonitoredEstimator) else estimator.step
        estimate, after = step(problem, hyper, lower, data, key)
        state = dataclasses.replace(
            state, step=state.step + 1, hyper=hyper, estimate=estimate, outer=outer, lower=after
        )
        return state, lower

    def judge(
        self, before: State, began: InnerState, state: State, k: Array, limit: Array
    ) -> tuple[State, Stop, Estimate]:
        """The state after a step, or a few, from ``before``, and whether the solver diverged.

        If it did, and the rule knows how to come back, the state is the old one with a shorter
        update to follow. The estimate is the one made, without value and gradient if it was
        refused so.
        """
        problem, estimator, tx, data = self.problem, self.estimator, self.tx, self.data
        hyper, estimate, after = state.hyper, state.estimate, state.lower
        if isinstance(estimator, MonitoredEstimator):
            estimate, after = estimator.measure(problem, hyper, began, estimate, after, data)
        seen = data_of_call(estimator, data, self.keys[k])
        solver = solver_of(estimator, problem, hyper, after.params, seen)
        lost = diverged_variables(estimator, estimate, after, limit)
        bad = diverged(problem, solver, hyper, before, began, estimate, after, seen, limit)
        bad = jnp.any(jnp.stack([bad, *lost.values()]))
        residual = inner_residual(estimate)
        floor = jnp.maximum(residual, 0.9 * state.floor)
        new = dataclasses.replace(state, estimate=estimate, lower=after, floor=floor)
        stop = Stop(bad, estimate.value, residual, inner_residual(before.estimate), lost)
        if isinstance(unwrap(tx), Backtracks):
            back, hopeful = tx.backtrack(before.outer, state.outer, hyper)
            again = bad & hopeful & (before.step > 0)
            shorter = jax.tree.map(lambda x, y: jnp.where(again, x, y), back, before.outer)
            old = dataclasses.replace(before, outer=shorter, step=before.step + again)
            new = jax.lax.cond(bad, lambda: old, lambda: new)
            stop = dataclasses.replace(stop, diverged=bad & ~again)
            value, grad = jax.tree.map(
                lambda x: jnp.where(again, jnp.nan, x), (estimate.value, estimate.grad)
            )
            estimate = Estimate(value, grad, estimate.evidence)
        return new, stop, estimate

    def row(self, state: State, made: Estimate) -> dict[str, Array]:
        """What the history says of a step whose estimate is ``made``."""
        evidence, tx, record = made.evidence, self.tx, self.record
        values = {"value": made.value, "grad_norm": norm(made.grad)}
        if isinstance(unwrap(tx), TracksBest):
            values["best"] = tx.best(state.outer, state.hyper, state.estimate.value)[1]
        for name in ("inner_residual", "linear_residual"):
            if (entry := getattr(evidence, name)) is not None:
                values[name] = entry
        values |= {name: jnp.asarray(n) for name, n in evidence.counts._asdict().items()}
        if record is not None:
            values |= record(state.hyper, state.lower.params, state.estimate)
        moved = to_coordinates(tx, made, state.outer)
        values |= history_columns(tx, moved) | early_stopping.columns(self.stopping, state)
        return values | columns(self.adaptive, state.work, moved)
