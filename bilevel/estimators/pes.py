r"""Persistent evolution strategies: unbiased over any number of truncated unrolls.

    xi_i <- xi_i + sigma u_i,   w_i^{+-} moves K steps at h +- sigma u_i,   u_i fresh signs,
    grad = mean_i [outer(w_i^+, h + sigma u_i) - outer(w_i^-, h - sigma u_i)] / (2 sigma^2) xi_i

Vicol, Metz, Sohl-Dickstein, "Unbiased Gradient Estimation in Unrolled Computation Graphs with
Persistent Evolution Strategies", ICML 2021, equation 8 with antithetic pairs (algorithm 2).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    InnerState,
    Problem,
    draw_outer,
    init_inner_state,
)
from bilevel.estimators import directions as dirs
from bilevel.estimators.compared import compared_evidence
from bilevel.estimators.evolution import require_es, run_episode
from bilevel.estimators.refusals import ALL_PARTS, check_read
from bilevel.solvers import Carry, Solver, end_chain, start_solver
from bilevel.spaces import free_coordinates, in_natural_units, move_coordinates
from bilevel.utils import (
    Count,
    Counter,
    FloatTree,
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    Scalar,
    axpy,
    register_node,
    require_positive_int,
)


class PESMemory(NamedTuple):
    """What the pairs carry from call to call.

    ``particles``, params and solver states of the pairs, ``[pairs, 2, *leaf]``; ``drift`` like
    ``hyper``, ``[pairs, *leaf]``, the sum of their perturbations; ``age``, ``()``, calls it sums.
    """

    particles: Carry
    drift: FloatTree | None
    age: Counter


@dataclass(frozen=True)
class PES:
    """Evolution strategies whose perturbed chains live on from call to call.

    A call sees K steps, yet its gradient is that of the whole history since the last reset: each
    chain remembers by how much it was perturbed so far. :class:`Evolution` would see K steps only.
    The price is a variance that grows linearly with the number of calls since the reset. Under
    ``tune`` old perturbations belong to older hyperparameters, as in the paper.

    Parameters
    ----------
    solver, steps : the inner solver, which need not be differentiable, and its steps K per call.
    sigma : size of the perturbation of every entry of ``hyper``, in every call; with
        ``problem.space``, of its free coordinates.
    pairs : number of antithetic pairs, at least 2, all kept in memory with their solver states.
    reset : after so many calls the pairs return to the unperturbed chain and forget; ``None`` is
        never. Where the steps contract, a few times the memory of the chain loses nothing.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Every pair draws its own, so that the standard error has its noise in it.

    Notes
    -----
    With ``problem.start`` every call starts anew, and PES is :class:`Evolution`.

    Raises
    ------
    ValueError : ``steps`` or ``reset`` below 1, ``pairs`` below 2, ``sigma`` not positive, a
        hyperparameter that nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.PES(bl.SGD(step_size=0.1, batch_size=32), steps=20, pairs=64, reset=50)
    """

    differentiates: ClassVar[str] = "values"  # what must have finite derivatives

    handles: ClassVar[tuple[str, ...]] = ALL_PARTS

    solver: Solver
    steps: int
    sigma: Number = 0.01
    pairs: int = 16
    reset: int | None = None
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_es("PES", self.steps, self.sigma, self.pairs)
        if self.reset is not None:
            require_positive_int("PES", "reset", self.reset)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return all chains at the start point; the drift is zero."""
        carry = (params, self.solver.init(params, data.inner))
        return init_inner_state(
            *carry, PESMemory(self._gather(carry), None, jnp.zeros((), jnp.int32))
        )

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Move every chain; weigh the differences of the pairs by their accumulated drift."""
        check_read("PES", problem, self.solver, hyper, lower, data, key)
        before, _ = start_solver(problem, self.solver, hyper, lower, data)
        free = free_coordinates(problem.space, hyper)
        particles, drift, age = self._remembered(problem, free, lower)

        def play(hyper: Hyper, carry: Carry, key: Key) -> tuple[Scalar, Carry, Counter]:
            at, seen = InnerState(*carry), draw_outer(data, self.outer_batch_size, key)
            return run_episode(problem, self.solver, self.steps, hyper, at, seen, key)

        def pair(carry: Carry, direction: PyTree, key: Key) -> tuple[Scalar, Carry, Count]:
            def one(sign: Array, carry: Carry) -> tuple[Scalar, Carry, Counter]:
                at = move_coordinates(problem.space, free, sign * self.sigma, direction, hyper)
                return play(at, carry, key)

            values, carry, taken = jax.vmap(one)(jnp.array([1, -1]), carry)
            return (values[0] - values[1]) / (2 * self.sigma**2), carry, taken

        # Step k uses fold_in(key, k), k < steps: what follows must not repeat those keys.
        drawn_by, pairs_by = (jax.random.fold_in(key, self.steps + i) for i in (0, 1))
        signs = dirs.Random(self.pairs)
        drawn = dirs.draw(signs, free, drawn_by)
        drift = axpy(self.sigma, drawn, drift)
        weights, particles, each = jax.vmap(pair)(
            particles, drawn, jax.random.split(pairs_by, self.pairs)
        )
        grad, error = in_natural_units(
            problem.space, free, *dirs.assemble_gradient(signs, drift, weights, free)
        )

        value, (params, state), taken = play(hyper, (lower.params, lower.solver_state), key)
        seen = draw_outer(data, self.outer_batch_size, key)
        end = end_chain(problem, hyper, (params, state), seen)
        evidence, reference = compared_evidence(
            *(end.problem, hyper, before, params, data, key, lower.reference, grad),
            solver=self.solver,
            passes=2 * self.pairs * self.steps,
            differentiable=False,
        )
        counts = Counts.of(gradients=jnp.sum(each) + taken + 1)
        evidence = replace(evidence, standard_error=error, counts=counts)
        memory = PESMemory(particles, drift, age + 1)
        after = InnerState(params, state, memory, reference)
        return Estimate(value, grad, evidence, end.aux), after

    def _gather(self, carry: Carry) -> Carry:
        """Return every chain of every pair at one point."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.pairs, 2, *x.shape)), carry)

    def _remembered(self, problem: Problem, free: PyTree, lower: InnerState) -> PESMemory:
        """Return the memory to begin with: as it is, or without the past."""
        none = jax.tree.map(lambda x: jnp.zeros((self.pairs, *x.shape), x.dtype), free)
        empty = PESMemory(
            self._gather((lower.params, lower.solver_state)), none, jnp.zeros((), jnp.int32)
        )
        if lower.memory.drift is None or problem.start is not None:
            return empty
        if self.reset is None:
            return lower.memory
        return jax.lax.cond(lower.memory.age >= self.reset, lambda: empty, lambda: lower.memory)


register_node(
    PES,
    data_fields=["solver", "sigma"],
    meta_fields=["steps", "pairs", "reset", "outer_batch_size"],
)
