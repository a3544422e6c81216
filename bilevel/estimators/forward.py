r"""Forward mode: the derivative of the SGD iterates, with the iterates' own minibatches.

    x_{k+1} = x_k - eta_k grad_x g(x_k, h; b_k)
    D_{k+1} = D_k - eta_k [H_xx g(x_k, h; b_k) D_k + H_xh g(x_k, h; b_k)],   D_k = d x_k / d h

Iutzeler, Pauwels, Vaiter, "Derivatives of Stochastic Gradient Descent in Parametric Optimization",
NeurIPS 2024. Written for any solver: ``D`` is pushed through ``solver.step``, momentum included.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    Evidence,
    InnerState,
    Problem,
    draw_outer,
    hold_model_state,
    init_inner_state,
    inner_loss,
    note_outer_rows,
    require_window,
)
from bilevel.estimators import directions as dirs
from bilevel.estimators.recursion import ForwardMemory, Tangents, contract_tangents, run_chain
from bilevel.estimators.refusals import ALL_PARTS, check_unrolled
from bilevel.estimators.remainder import Budget, Remainder, tangent_remainder
from bilevel.estimators.residuals import find_progress
from bilevel.solvers import (
    Carry,
    Solver,
    end_chain,
    run_steps,
    start_solver,
)
from bilevel.utils import (
    FloatTree,
    Hyper,
    Key,
    Params,
    PyTree,
    register_node,
    require_positive_int,
    vdot,
)

Slopes: TypeAlias = tuple[Array, Params, PyTree, Tangents, Remainder]


@dataclass(frozen=True)
class Forward:
    """The SGD-derivative recursion: all ``p = size(hyper)`` tangents at once, memory O(p params).

    ``grad = D_K^T grad_params outer + grad_hyper outer``; memory does not grow with ``steps``.
    Called again with the state it returned, it goes on from both ``x_K`` and ``D_K``.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    start : the derivative starts at this step (against the curse of unrolling: Scieur et al.,
        2022; Mehmood, Knoll, Ochs, 2026); ``D`` needs about 5 / (step size x curvature) steps.
    average : return the mean of iterate and derivative over the last ``average`` steps.
    cross : take the outer gradient at the iterate of an independent chain, which removes the
        O(step size) bias from the correlation of ``x`` and ``D``, at twice the plain steps.
    directions : ``None`` for all of hyper space; an integer m for m random sign vectors per call
        (forward gradient: unbiased; for m > 1 and several hyperparameters with a standard error,
        over the directions alone: :class:`Replicated` has the solver's noise in it too); or a tree
        like ``hyper`` with leaves ``[m, *leaf]``, on whose span, if orthonormal, it is projected.
    chunk : push this many tangents at a time, running the loop once per chunk: memory O(chunk
        params). With ``chunk`` or ``directions`` every call starts its derivative from 0.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : ``steps`` below 1; ``start + average`` above ``steps``; a hyperparameter that
        nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Forward(bl.SGD(step_size=0.1, batch_size=32), steps=1000, average=200)
    """

    handles: ClassVar[tuple[str, ...]] = ALL_PARTS

    solver: Solver
    steps: int
    start: int = 0
    average: int = 0
    cross: bool = False
    directions: int | FloatTree | None = None
    chunk: int | None = None
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Forward", "steps", self.steps)
        if self.chunk is not None:
            require_positive_int("Forward", "chunk", self.chunk)
        if self.start < 0 or self.average < 0 or self.start + max(self.average, 1) > self.steps:
            raise ValueError(
                f"Forward: start={self.start} and average={self.average} must be at least 0 and "
                f"leave room within steps={self.steps}."
            )
        object.__setattr__(self, "directions", dirs.normalise("Forward", self.directions))

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the start points of the chain (and of its twin); tangents are zero."""
        state = self.solver.init(params, data.inner)
        tangents = None if self._carries() else ()
        return init_inner_state(
            params, state, ForwardMemory(tangents, (params, state) if self.cross else None)
        )

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Run the chain with its derivative; contract with the outer gradient."""
        data = draw_outer(data, self.outer_batch_size, key)
        check_unrolled("Forward", problem, self.solver, hyper, lower, data, key)
        before, _ = start_solver(problem, self.solver, hyper, lower, data)
        twin = self._twin(problem, hyper, lower, data, key) if self.cross else None
        budget = Budget.of(problem, self.solver, data, lower.params, self._passes(hyper))
        sample = budget.draw(data, key)
        drawn = None  # chunk by chunk
        if self.directions is not None or self.chunk is None:
            drawn = dirs.draw(self.directions, hyper, jax.random.fold_in(key, self.steps + 1))

        def slopes(tangents: Tangents, drawn: FloatTree) -> Slopes:
            loop = partial(run_chain, steps=self.steps, late=self.start, average=self.average)
            end = loop(problem, self.solver, hyper, lower, tangents, drawn, data, key)
            (params, state), tangents = end
            where = end_chain(problem, hyper, end[0] if twin is None else twin, data)
            in_seen, in_hyper = jax.grad(where.outer, argnums=(0, 1))(where.seen, hyper)
            direct = jax.vmap(lambda u: vdot(u, in_hyper))(drawn)
            through = contract_tangents(tangents, in_seen)
            tree = jax.tree.structure(params)
            remainder = tangent_remainder(
                hold_model_state(problem, state),
                hyper,
                params,
                sample,
                tree.unflatten(tangents[: tree.num_leaves]),
                drawn,
                through + direct,
                budget=budget,
                whole=not self.start,
            )
            return through + direct, params, state, tangents, remainder

        tangents = lower.memory.tangents if self._carries() else None
        if self.chunk is None:
            along, params, state, tangents, remainder = slopes(tangents, drawn)
        else:
            along, params, state, remainder = self._chunked(slopes, drawn, hyper, lower, self.chunk)
        grad, error = dirs.assemble_gradient(self.directions, drawn, along, hyper, one_run=True)

        end = end_chain(problem, hyper, (params, state), data)
        residual, reference = find_progress(
            end.problem, hyper, before, params, sample, lower.reference, budget.sampled
        )
        evidence = Evidence(
            residual,
            standard_error=error,
            counts=self._counts(hyper, params, budget),
            derivative_residual=remainder.residual,
            residual_error=remainder.error,
            freedom=None if error is None else jnp.asarray(len(along) - 1, jnp.int32),
            directions_only=error is not None,
            not_measured=remainder.missing,
        )
        memory = ForwardMemory(tangents if self._carries() else (), twin)
        evidence = note_outer_rows(evidence, self.outer_batch_size)
        after = InnerState(params, state, memory, reference)
        return Estimate(end.value(hyper), grad, evidence, end.aux), after

    def scaled(self, times: int) -> "Forward":
        """Return the estimator with so many times its random directions, or its steps."""
        if isinstance(self.directions, dirs.Random):
            return replace(self, directions=dirs.Random(times * self.directions.n))
        require_window(self, self.solver, self.average)
        steps, start, average = (times * n for n in (self.steps, self.start, self.average))
        return replace(self, steps=steps, start=start, average=average)

    def _passes(self, hyper: Hyper) -> int:
        """Return the cost in gradients: tangents share a product, each is far below one."""
        return self.steps * (1 + dirs.count_tangents(self.directions, hyper) // 4)

    def _carries(self) -> bool:
        """Return whether tangents go on from call to call."""
        return self.directions is None and self.chunk is None

    def _counts(self, hyper: PyTree, params: PyTree, budget: Budget) -> Counts:
        tangents = dirs.count_tangents(self.directions, hyper)
        chunks = 1 if self.chunk is None else -(-tangents // self.chunk)
        gradients = self.steps * (chunks + self.cross) + 1
        return Counts.of(
            gradients=gradients,
            jvps=(self.steps - self.start) * tangents,
            hvps=budget.hvps(params) * chunks,
        )

    def _chunked(
        self,
        slopes: Callable[..., Slopes],
        drawn: FloatTree,
        hyper: Hyper,
        lower: InnerState,
        rows: int,
    ) -> tuple[Array, Params, PyTree, Remainder]:
        """Return all slopes, a chunk of directions at a time; the iterates are the same in each."""
        m = dirs.count_tangents(self.directions, hyper)

        def one(_: Carry, first: Array) -> tuple[Carry, tuple[Array, Remainder]]:
            some = dirs.chunk(self.directions, drawn, hyper, first, rows)
            along, params, state, tangents, remainder = slopes(None, some)
            del tangents
            return (params, state), (along, remainder)

        begun = lower.params, lower.solver_state
        (params, state), (along, each) = jax.lax.scan(one, begun, jnp.arange(0, m, rows))
        return along.reshape(-1)[:m], params, state, jax.tree.map(jnp.max, each)

    def _twin(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[PyTree, PyTree]:
        """Return the independent chain after as many steps, from other keys."""
        carry = start_solver(problem, self.solver, hyper, InnerState(*lower.memory.twin), data)
        other = jax.random.fold_in(key, self.steps)
        return run_steps(
            inner_loss(problem),
            self.solver,
            hyper,
            carry,
            data,
            other,
            steps=self.steps,
            average=self.average,
        )


register_node(
    Forward,
    data_fields=["solver", "directions"],
    meta_fields=["steps", "start", "average", "cross", "chunk", "outer_batch_size"],
)
