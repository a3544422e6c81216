"""A solver that carries what losses have beside params: model state, running loss, side results.

One adapter for all solvers: an estimator runs it as any solver, and differentiates through what it
carries as through momentum.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    BoundLoss,
    Composite,
    Data,
    Loss,
    Problem,
    ShownBatch,
    hold_model_state,
    loss_key,
)
from bilevel.solvers.base import (
    Carry,
    DeclaresStability,
    MeasuresProblem,
    NotUnrollable,
    Refreshes,
    Solver,
    Stops,
    batch_of_step,
    require_fit,
)
from bilevel.utils import (
    Counter,
    DataTree,
    Flag,
    Hyper,
    Key,
    Params,
    PyTree,
    Scalar,
    dtype,
    partition,
    register_node,
    require_same,
)


@dataclass(frozen=True)
class ModelCarry:
    """A solver's state beside what losses carry; what the outer loss sees comes first.

    ``running`` is the sum of the running loss over the ``taken`` steps of the call, ``()`` each;
    ``aux`` the side results of the last step; ``solver`` the state of the solver itself.
    """

    model_state: PyTree
    running: Scalar | None
    taken: Counter | None
    aux: PyTree
    solver: PyTree


class ChainEnd(NamedTuple):
    """Where a chain of steps ends.

    ``problem`` at the last model state; the floats that are ``seen`` by the outer loss, the first
    of the chain's, params before all; the ``outer`` loss as a function of them and of hyper, the
    mean of the running loss included; ``aux``, side results by level. Of a plain problem the params
    alone are seen.
    """

    problem: Problem
    seen: list[Array]
    outer: Callable[[list[Array], Hyper], Scalar]
    aux: PyTree = None

    def value(self, hyper: Hyper) -> Scalar:
        """Return the outer loss."""
        return self.outer(self.seen, hyper)


@dataclass(frozen=True)
class ModelSolver:
    """The steps of ``solver`` on the losses of ``problem``, which are not plain.

    ``model_state`` and ``aux`` are where a run begins: the state, and zeros; ``None`` for side
    results that nobody looks at.
    """

    solver: Solver
    problem: Problem
    model_state: PyTree
    aux: PyTree = None

    @property
    def batch_size(self) -> int | None:
        """Examples per step, ``None`` for all."""
        return getattr(self.solver, "batch_size", None)

    def check(self, problem: Problem) -> None:
        """Raise unless the solver can minimise the problem."""
        require_fit(problem, self.solver)

    def why_not_unrolled(self, state: ModelCarry) -> str | None:
        """Return the solver's reason, ``None`` if there is none."""
        inside = self.solver
        return inside.why_not_unrolled(state.solver) if isinstance(inside, NotUnrollable) else None

    def stopped(self, state: ModelCarry) -> Flag | None:
        """Return whether the solver has stopped."""
        return self.solver.stopped(state.solver) if isinstance(self.solver, Stops) else None

    def max_curvature(self, hyper: Hyper, state: ModelCarry) -> Scalar | None:
        """Return the solver's own, ``None`` if it declares none."""
        inside = self.solver
        if not isinstance(inside, DeclaresStability):
            return None
        return inside.max_curvature(hyper, state.solver)

    def init(self, params: Params, data: DataTree) -> ModelCarry:
        """Return the state before the first step."""
        total = taken = None
        if self.problem.running is not None:
            total, taken = jnp.zeros((), dtype(params)), jnp.zeros((), jnp.int32)
        solver = self.solver.init(params, data)
        return ModelCarry(self.model_state, total, taken, self.aux, solver)

    def refresh(self, state: ModelCarry) -> ModelCarry:
        """Return the state to begin a call with: the running loss begins anew."""
        if isinstance(self.solver, Refreshes):
            state = replace(state, solver=self.solver.refresh(state.solver))
        none = jax.tree.map(jnp.zeros_like, (state.running, state.taken))
        return replace(state, running=none[0], taken=none[1])

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: ModelCarry
    ) -> ModelCarry:
        """Return the state with what the solver measures at the beginning of a call."""
        if not isinstance(self.solver, MeasuresProblem):
            return state
        solver = self.solver.measure(loss, params, hyper, data, state.solver)
        return replace(state, solver=solver)

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: ModelCarry,
    ) -> tuple[Params, ModelCarry]:
        """Take the solver's step; carry on what the losses say on its minibatch."""
        problem = self.problem
        of_loss = loss_key(key, "inner") if problem.stochastic else None

        def at_step(params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
            return loss(params, hyper, ShownBatch(batch, state.model_state, of_loss))

        shown = Composite(at_step, loss.prox) if isinstance(loss, Composite) else at_step
        moved, solver = self.solver.step(shown, params, hyper, data, key, state.solver)
        if not (problem.has_state or problem.has_aux or problem.running):
            return moved, replace(state, solver=solver)
        batch = batch_of_step(self.solver, data, key, state.solver)
        # Not stored by reverse mode, which keeps params and minibatch anyway.
        beside = jax.checkpoint(self._beside, prevent_cse=False)
        state = beside(params, hyper, ShownBatch(batch, state.model_state, of_loss), state)
        return moved, replace(state, solver=solver)

    def _beside(
        self, params: Params, hyper: Hyper, shown: ShownBatch, state: ModelCarry
    ) -> ModelCarry:
        """Return what is carried after the losses have seen a minibatch."""
        result = BoundLoss(self.problem, "inner").evaluate(params, hyper, shown)
        if self.problem.has_state:
            new, old = result.model_state, state.model_state
            require_same("the new model state that problem.inner returns", new, "model_state", old)
            state = replace(state, model_state=new)
        if state.running is not None and state.taken is not None:
            value = BoundLoss(self.problem, "running")(params, hyper, shown)
            total = state.running + jnp.asarray(value, dtype(params))
            state = replace(state, running=total, taken=state.taken + 1)
        return state if state.aux is None else replace(state, aux=result.aux)


register_node(ModelSolver, data_fields=["solver", "model_state", "aux"], meta_fields=["problem"])
register_node(ModelCarry)


def end_chain(problem: Problem, hyper: Hyper, carry: Carry, data: Data) -> ChainEnd:
    """Return what there is to say where a chain ends."""
    params, state = carry
    if not isinstance(state, ModelCarry):
        leaves, tree = jax.tree.flatten(params)
        return ChainEnd(
            problem, leaves, lambda x, hyper: problem.outer(tree.unflatten(x), hyper, data.outer)
        )
    held, aux = hold_model_state(problem, state), None
    moving, fixed, merge = partition((params, state.model_state, state.running))

    def outer(moving: list[Array], hyper: Hyper) -> Scalar:
        params, model_state, running = merge(moving, fixed)
        at = hold_model_state(problem, replace(state, model_state=model_state))
        value = at.outer(params, hyper, data.outer)
        if running is None or state.taken is None:
            return value
        return value + running / jnp.maximum(state.taken, 1)

    if problem.has_aux and isinstance(held.outer, BoundLoss):
        # At no cost: the compiler finds the outer loss evaluated here already.
        both = {"inner": state.aux, "outer": held.outer.evaluate(params, hyper, data.outer).aux}
        aux = {level: found for level, found in both.items() if found is not None}
    return ChainEnd(held, moving, outer, aux)
