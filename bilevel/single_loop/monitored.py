"""Estimators that move several variables: a move, a look at it, the name of what has diverged."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Data, Estimate, Evidence, InnerState, Problem
from bilevel.estimators.residuals import inner_residual
from bilevel.single_loop.monitor import Watch, diverged_variables, observe, relative
from bilevel.utils import PyTree, dtype, norm


class Watched(ABC):
    """A step is a move and a look at it; :func:`bilevel.tune` looks once in a few moves.

    ``move`` leaves in the memory: ``second``, that variable; ``sizes``, ``[2]``, those of the two
    directions that it took; ``watch``; ``count``, the moves made so far, some per call.
    """

    variables: ClassVar[tuple[str, str]] = ("w (params)", "v (adjoint)")
    second: ClassVar[str] = "v"

    @abstractmethod
    def update(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """The step itself; its evidence is that of the last look."""

    @abstractmethod
    def _every(self, data: Data) -> int:
        """Calls between two measurements on all data."""

    def _moves(self) -> int:
        return 1

    @abstractmethod
    def _passes(self, data: Data) -> Counts:
        """What a measurement on all data costs."""

    @abstractmethod
    def _measure(
        self, problem: Problem, hyper: PyTree, after: InnerState, data: Data
    ) -> tuple[PyTree, PyTree, PyTree]:
        """``(inner gradient at the params, what the second variable leaves, of what)``."""

    def step(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Move all variables but the hyperparameters, whose direction it returns, and look."""
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
        memory = after.memory
        watch: Watch = memory["watch"]
        dtype = watch.scale.dtype
        last = jnp.stack([norm(estimate.grad), jnp.abs(estimate.value)]).astype(dtype)
        seen = jnp.concatenate([memory["sizes"], last])

        def measure() -> tuple[Array, Array]:
            gradient, left, rhs = self._measure(problem, hyper, after, data)
            residual, reference = inner_residual(
                problem, hyper, before.params, gradient, data, after.reference
            )
            return relative(watch, residual, norm(left), norm(rhs)), reference

        calls, every = memory["count"] // self._moves() - 1, self._every(data)
        watch, reference, measured = observe(watch, after.reference, seen, calls, every, measure)
        cost = jax.tree.map(lambda n: n * measured, self._passes(data))
        counts = jax.tree.map(jnp.add, estimate.evidence.counts, cost)
        evidence = replace(self._evidence(watch), counts=counts)
        after = InnerState(after.params, after.solver_state, {**memory, "watch": watch}, reference)
        return Estimate(estimate.value, estimate.grad, evidence), after

    def _unwatched(self, params: PyTree) -> dict[str, Any]:
        """The part of the memory that is looked at, before the first move."""
        scalar = dtype(params)
        count, none = jnp.zeros((), jnp.int32), jnp.zeros(2, scalar)
        return {"count": count, "sizes": none, "watch": Watch.zeros(scalar)}

    def _evidence(self, watch: Watch, counts: Any = None) -> Evidence:
        more = {} if counts is None else {"counts": counts}
        return Evidence(watch.residual, watch.second, **more)

    def diverged(self, estimate: Estimate, after: InnerState, limit: Any) -> dict[str, Array]:
        """The variables by name, and whether each has diverged."""
        memory = after.memory
        second = memory[self.second]
        return diverged_variables(self.variables, memory["watch"], second, estimate, after, limit)


def often(counts: tuple[int, ...]) -> int:
    """Calls between two measurements: they cost a twentieth of the oracle calls at most."""
    return max(128, 20 * max(counts))


def sizes(*directions: PyTree) -> Array:
    """Norms of the directions of the first two variables, ``[2]``."""
    return jnp.stack([norm(x).astype(dtype(directions[0])) for x in directions])
