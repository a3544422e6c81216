"""Estimators that move several variables: an update, its measurement, what has diverged."""

from abc import ABC, abstractmethod

import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, InnerState, Problem
from bilevel.single_loop.batched_checks import can_batch_checks, run_batched
from bilevel.single_loop.monitor import Monitor, Watch, find_diverged
from bilevel.tuning import Block, Loop, State
from bilevel.utils import PyTree, dtype, norm


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
