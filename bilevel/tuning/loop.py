"""The outer loop: one step of it, and a block of steps that ends by itself."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

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
    as_pytree,
)
from bilevel.estimators import bind_call, data_of_call, init_filled, solver_of
from bilevel.outer import (
    AnyRule,
    Backtracks,
    SetsTolerance,
    TracksBest,
    find_capability,
    history_columns,
    in_coordinates,
    to_coordinates,
    update_hyper,
)
from bilevel.tuning import hooks as hooking
from bilevel.tuning.divergence import (
    diverged_variables,
    going_on,
    gradient_scale,
    has_diverged,
    reported_residual,
    take_back,
)
from bilevel.tuning.history import (
    ROW,
    HistoryRows,
    columns_of,
    erase_row,
    estimate_columns,
    unwritten_rows,
    write_row,
)
from bilevel.tuning.hooks import Hooks
from bilevel.tuning.state import Columns, Divergence, State, Step, Stop
from bilevel.utils import PyTree, register_node, zeros_like

Block = tuple[State, Stop, Columns]
BlockCarry = tuple[State, State, Stop, HistoryRows, Array]  # last good, now; rows, how many written


@dataclass(frozen=True)
class Loop:
    """The outer loop as pure functions: ``init``, ``step``, and ``run`` for many steps.

    :func:`bilevel.tune` is this with checks, compilation and messages. It is a pytree, so that it
    may be an argument of ``jit``, and ``vmap`` may map over any of its numbers.

    Parameters
    ----------
    problem, estimator, outer, data, hooks, warm_start : as for :func:`bilevel.tune`; in ``hooks``
        those that look at steps, such as ``bl.Record`` and ``bl.EarlyStopping``.
    divergence : what counts as diverged.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.exp(h) * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     quadratic=True)
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> loop = bl.Loop(problem, bl.ClosedForm(), optax.adam(0.1), data)
    >>> state = loop.init(jnp.array(0.0), jnp.array(0.0), jax.random.key(0))
    >>> state, stop, row = jax.jit(bl.Loop.step)(loop, state)
    >>> print(f"{row['value']:.3f} {loop.proposed(state):.2f}")  # Adam's first step
    0.125 -0.10
    """

    problem: Problem
    estimator: Estimator
    outer: AnyRule
    data: Data
    hooks: Hooks = ()
    divergence: Divergence = Divergence()
    warm_start: bool = True

    def __post_init__(self) -> None:
        """Make the outer rule a pytree that moves coordinates where there is a space."""
        # Neither in coordinates already nor a placeholder: JAX rebuilds nodes around anything.
        if hasattr(self.outer, "update"):
            rule = in_coordinates(self.problem.space, as_pytree("tune", self.outer))
            object.__setattr__(self, "outer", rule)

    def init(self, hyper: PyTree, params: PyTree, key: Array) -> State:
        """Return the state before the first step."""
        estimator, data = self.estimator, self.data
        problem = bind_call(self.problem, estimator, None, key)
        lower = init_filled(problem, estimator, hyper, params, data, key)
        shapes, _ = jax.eval_shape(lambda x: estimator.step(problem, hyper, x, data, key), lower)
        estimate, step, start = zeros_like(shapes), jnp.zeros((), jnp.int32), params
        scale = gradient_scale(problem, hyper, params, data_of_call(estimator, data, key))
        floor, memory = reported_residual(estimate), hooking.init_memory(self.hooks, hyper, params)
        at = step, hyper, estimate, self.outer.init(hyper)
        return State(*at, lower, key, start, scale, floor, memory)

    def step(self, state: State) -> Block:
        """Return ``(state, stop, row)`` after one outer step; ``row`` is that of the history.

        Where ``stop.diverged``, the state to keep is the one before.
        """
        return self._advance(state, jax.random.fold_in(state.key, state.step))

    def _advance(self, before: State, key: Array) -> Block:
        proposed, began = self.propose(before, key)
        state, stop, made = self.judge(before, began, proposed, key, self.divergence.limit)
        seen = self.seen(state, made)
        seen = seen._replace(state=replace(state, memory=hooking.update_memory(self.hooks, seen)))
        return seen.state, stop, self.row(seen)

    def propose(
        self, state: State, key: Array, *, unchecked: bool = False
    ) -> tuple[State, InnerState]:
        """Update ``hyper`` and estimate there; return also the inner state that this began with.

        ``unchecked``: by an estimator's ``update`` alone, its ``measure`` is still to come.
        """
        estimator, data = self.estimator, self.data
        problem = bind_call(self.problem, estimator, state.lower if self.warm_start else None, key)
        first = state.step == 0
        updated = update_hyper(self.outer, state.estimate, state.outer, state.hyper)
        hyper, outer = jax.tree.map(
            lambda old, new: jnp.where(first, old, new), (state.hyper, state.outer), updated
        )
        if (rule := find_capability(self.outer, SetsTolerance)) is not None:
            estimator = rule.set_tolerance(estimator, outer)
        lower = state.lower
        if not self.warm_start:
            cold = init_filled(problem, estimator, hyper, state.start, data, key)
            lower = jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), cold, state.lower)
        move = estimator.step
        if unchecked and isinstance(estimator, MonitoredEstimator):
            move = estimator.update
        estimate, after = move(problem, hyper, lower, data, key)
        state = replace(
            state, step=state.step + 1, hyper=hyper, estimate=estimate, outer=outer, lower=after
        )
        return state, lower

    def judge(
        self, before: State, began: InnerState, state: State, key: Array, limit: Array | float
    ) -> tuple[State, Stop, Estimate]:
        """Return ``(state, stop, estimate made)`` after a step, or a few, from ``before``."""
        estimator, estimate, after = self.estimator, state.estimate, state.lower
        problem, hyper = bind_call(self.problem, estimator, after, key), state.hyper
        seen = data_of_call(estimator, self.data, key)
        solver = solver_of(estimator, problem, hyper, after.params, seen)
        lost = diverged_variables(estimator, estimate, after, limit)
        bad = has_diverged(problem, solver, hyper, before, began, estimate, after, seen, limit)
        bad = jnp.any(jnp.stack([bad, *lost.values()]))
        residual = reported_residual(estimate)
        floor = jnp.maximum(residual, 0.9 * state.floor)
        new = replace(state, floor=floor)
        stop = Stop(bad, estimate.value, residual, reported_residual(before.estimate), lost)
        if (rule := find_capability(self.outer, Backtracks)) is None:
            return new, stop, estimate
        return take_back(rule, before, new, stop)

    def seen(self, state: State, made: Estimate) -> Step:
        """Return a step as hooks see it."""
        kept, free = (to_coordinates(self.outer, e, state.outer) for e in (state.estimate, made))
        rule, at = find_capability(self.outer, TracksBest), (state.outer, state.hyper)
        best = made.value if rule is None else rule.best(*at, state.estimate.value)[1]
        return Step(state, made, kept, free, best)

    def row(self, step: Step) -> Columns:
        """Return what the history says of a step."""
        tracks = find_capability(self.outer, TracksBest) is not None
        best = {"best": step.best} if tracks and step.best is not None else {}
        own = estimate_columns(step.made) | best | history_columns(self.outer, step.free)
        return own | hooking.add_columns(self.hooks, step)

    def blank(self, state: State) -> tuple[Columns, Stop]:
        """Return the shapes of a row of the history, and the ``stop`` of a run that goes on."""
        like = jax.eval_shape(lambda: self.row(self.seen(state, state.estimate)))
        return like, going_on(self.estimator, state, self.divergence)

    def run(self, state: State, count: Array | int, *, length: int) -> Block:
        """Return ``(state, stop, history)`` after up to ``count <= length`` outer steps.

        It ends early where the solver diverges, with the last good state, and where a hook is done.
        Rows of the history that were not reached are NaN.
        """
        if isinstance(self.estimator, DrivesBlocks) and self.estimator.can_drive(self):
            return self.estimator.drive(self, state, count, length)
        begun, count, numbers = state, jnp.asarray(count, ROW), state.step + jnp.arange(length)
        # All keys at once: one by one they cost more than a small step.
        keys = jax.vmap(partial(jax.random.fold_in, state.key))(numbers)
        like, going = self.blank(state)

        def unfinished(carry: BlockCarry) -> Array:
            _, state, stop, _, k = carry
            return (k < count) & ~(stop.diverged | hooking.is_done(self.hooks, state, begun))

        def advance(carry: BlockCarry) -> BlockCarry:
            _, good, _, rows, k = carry
            state, stop, row = self._advance(good, keys[k])
            return _varying(good), state, stop, write_row(rows, k, row), k + 1

        carry = _varying(state), state, going, unwritten_rows(like, length), jnp.zeros((), ROW)
        good, state, stop, rows, k = jax.lax.while_loop(unfinished, advance, carry)
        kept = jax.tree.map(partial(jnp.where, stop.diverged), good, _varying(state))
        state = replace(kept, key=begun.key, start=begun.start, scale=begun.scale)
        rows = erase_row(rows, k - 1, stop.diverged)
        return state, stop, columns_of(rows, like)

    def proposed(self, state: State) -> PyTree:
        """Return the hyperparameters that the last estimate asks to evaluate next."""
        return update_hyper(self.outer, state.estimate, state.outer, state.hyper)[0]

    def final(self, state: State, diverged: Array) -> PyTree:
        """Return the best point if the rule tracks one, else the hyperparameters one update on."""
        if (rule := find_capability(self.outer, TracksBest)) is not None:
            best, _ = rule.best(state.outer, state.hyper, state.estimate.value)
            return jax.tree.map(lambda x, y: jnp.where(state.step > 0, x, y), best, state.hyper)
        keep = diverged | (state.step == 0)
        return jax.lax.cond(keep, lambda: state.hyper, lambda: self.proposed(state))


register_node(
    Loop,
    data_fields=["estimator", "outer", "data", "hooks", "divergence"],
    meta_fields=["problem", "warm_start"],
)


def _varying(state: State) -> State:
    """Return the state without what no step changes, of which a second copy would cost time."""
    nothing: Any = None
    return replace(state, key=nothing, start=nothing, scale=nothing)


@runtime_checkable
class DrivesBlocks(Protocol):
    """An estimator that can make a block of outer steps cheaper than one step after the other."""

    def can_drive(self, loop: Loop) -> bool:
        """Return whether nothing in this loop needs to see every step."""
        ...

    def drive(self, loop: Loop, state: State, count: Array | int, length: int) -> Block:
        """Return what ``loop.run`` does."""
        ...
