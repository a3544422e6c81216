"""Estimators that move several variables: an update, its measurement, what has diverged."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Data, Estimate, Evidence, InnerState, Problem
from bilevel.estimators import inner_residual
from bilevel.single_loop.batched_checks import can_batch_checks, run_batched
from bilevel.single_loop.monitor import Watch, find_diverged, relative, update_watch
from bilevel.tuning.loop import Block, Loop
from bilevel.tuning.state import State
from bilevel.utils import PyTree, dtype, norm

# ``(inner gradient at the params, what the second variable leaves, of what)`` on all data.
Residuals = Callable[[Problem, PyTree, InnerState, Data], tuple[PyTree, PyTree, PyTree]]


class Monitor(NamedTuple):
    """A monitor: what is measured on all data between two updates, how often, and at what cost.

    ``passes``: minibatches per pass of each level; a measurement costs ``cost`` for each of those
    of the first. ``every``: calls between two measurements, ``None`` for so many that they cost a
    twentieth of the oracle calls at most; ``updates``: those per call. ``second``: the key of the
    second variable in the memory; ``linear``: whether its residual is that of a linear system.
    """

    residuals: Residuals
    passes: Callable[[Data], tuple[int, ...]]
    cost: Counts
    every: int | None
    updates: int = 1
    second: str = "v"
    variables: tuple[str, str] = ("w (params)", "v (adjoint)")
    linear: bool = True

    def evidence(self, watch: Watch, counts: Counts) -> Evidence:
        """Return the evidence of the last measurement, with the counts of this call."""
        second = watch.second if self.linear else None
        return Evidence(watch.residual, second, counts=counts)

    def measure(
        self,
        problem: Problem,
        hyper: PyTree,
        before: InnerState,
        estimate: Estimate,
        after: InnerState,
        data: Data,
    ) -> tuple[Estimate, InnerState]:
        """Watch the directions, and measure on all data where that is due."""
        memory, passes = after.memory, self.passes(data)
        watch: Watch = memory["watch"]
        last = jnp.stack([norm(estimate.grad), jnp.abs(estimate.value)])
        seen = jnp.concatenate([memory["sizes"], last.astype(watch.scale.dtype)])

        def measure() -> tuple[Array, Array]:
            gradient, left, rhs = self.residuals(problem, hyper, after, data)
            residual, reference = inner_residual(
                problem, hyper, before.params, gradient, data, after.reference
            )
            return relative(watch, residual, norm(left), norm(rhs)), reference

        calls, every = memory["count"] // self.updates - 1, self.every or max(128, 20 * max(passes))
        watch, reference, measured = update_watch(
            watch, after.reference, seen, calls, every, measure
        )
        cost = jax.tree.map(lambda n: n * passes[0] * measured, self.cost)
        counts = jax.tree.map(jnp.add, estimate.evidence.counts, cost)
        memory = {**memory, "watch": watch}
        after = InnerState(after.params, after.solver_state, memory, reference)
        return Estimate(estimate.value, estimate.grad, self.evidence(watch, counts)), after


class Monitored(ABC):
    """An estimator whose step is an update, then what its monitor measures.

    ``update`` leaves in the memory what :func:`init_watched` begins: ``sizes``, ``[2]``, those of
    the two directions that it took; ``watch``; ``count`` of the updates so far, some per call.
    """

    @property
    @abstractmethod
    def monitor(self) -> Monitor:
        """The monitor: what is measured, how often and at what cost."""

    @abstractmethod
    def update(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Take the step itself; its evidence is that of the last measurement."""

    def step(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Update all variables but the hyperparameters, whose direction it returns; measure."""
        estimate, after = self.update(problem, hyper, lower, data, key)
        return self.measure(problem, hyper, lower, estimate, after, data)

    def measure(
        self,
        problem: Problem,
        hyper: PyTree,
        before: InnerState,
        estimate: Estimate,
        after: InnerState,
        data: Data,
    ) -> tuple[Estimate, InnerState]:
        """Watch the directions, and measure on all data where that is due."""
        return self.monitor.measure(problem, hyper, before, estimate, after, data)

    def can_drive(self, loop: Loop) -> bool:
        """Return whether nothing in the loop needs to see every single move."""
        return can_batch_checks(loop)

    def drive(self, loop: Loop, state: State, count: Array | int, length: int) -> Block:
        """Return a block of outer steps that are looked at once in a few moves."""
        return run_batched(loop, self, state, count, length)

    @abstractmethod
    def stability_limits(self, hyper: PyTree, lower: InnerState) -> dict[str, Array]:
        """Return the largest inner curvature that a variable's step contracts, where known."""

    def diverged(
        self, estimate: Estimate, after: InnerState, limit: float | Array
    ) -> dict[str, Array]:
        """Return the variables by name, and whether each has diverged."""
        memory, monitor = after.memory, self.monitor
        second = memory[monitor.second]
        return find_diverged(monitor.variables, memory["watch"], second, estimate, after, limit)


def init_watched(params: PyTree) -> dict[str, PyTree]:
    """Return the part of the memory that is watched, before the first update."""
    scalar = dtype(params)
    count, none = jnp.zeros((), jnp.int32), jnp.zeros(2, scalar)
    return {"count": count, "sizes": none, "watch": Watch.zeros(scalar)}


def direction_sizes(*directions: PyTree) -> Array:
    """Return norms of the directions of the first two variables, ``[2]``."""
    return jnp.stack([norm(x).astype(dtype(directions[0])) for x in directions])
