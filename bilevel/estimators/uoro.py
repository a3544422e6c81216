r"""UORO: forward mode compressed to rank one, unbiased, in the memory of two vectors.

    D_{k+1} = A_k D_k + B_k,   A_k = d step_k / d z,   B_k = d step_k / d h,   D_k ~ s_k r_k^T,
    s_{k+1} = p A_k s_k + q nu_k,   r_{k+1} = r_k / p + B_k^T nu_k / q,   nu_k random signs,
    p = sqrt(|r_k| / |A_k s_k|),   q = sqrt(|B_k^T nu_k| / |nu_k|)

``z`` holds all floating-point leaves of params and solver state. Tallec, Ollivier, "Unbiased Online
Recurrent Optimization", ICLR 2018, algorithm 1: ``E[s_k r_k^T] = D_k`` for any ``p, q``; these ones
minimise the variance of a step.
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
    inner_loss,
)
from bilevel.estimators import directions as dirs
from bilevel.estimators.compared import compared_evidence
from bilevel.estimators.refusals import ALL_PARTS, check_unrolled
from bilevel.solvers import Solver, begin_again, draw_ahead, end_chain, start_solver, step_key
from bilevel.utils import (
    FloatTree,
    Hyper,
    Key,
    Params,
    PyTree,
    axpy,
    norm,
    partition,
    register_node,
    require_positive_int,
    vdot,
    zeros_like,
)


class UOROMemory(NamedTuple):
    """The factors of the derivative: ``state``, a list of leaves, and ``hyper``, like ``hyper``."""

    state: FloatTree
    hyper: FloatTree


@dataclass(frozen=True)
class UORO:
    """The SGD-derivative recursion at rank one: cost and memory do not grow with ``size(hyper)``.

    Unbiased for what :class:`Forward` computes with the same minibatches, and carried from call to
    call as there. One sample is noise: use it as ``Replicated(UORO(solver, steps), n)``, which
    averages and says how large the noise is.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : ``steps`` below 1, a hyperparameter that nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> one = bl.UORO(bl.SGD(step_size=0.1, batch_size=32), steps=1000)
    >>> estimator = bl.Replicated(one, n=64)
    """

    handles: ClassVar[tuple[str, ...]] = ALL_PARTS

    solver: Solver
    steps: int
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("UORO", "steps", self.steps)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the chain's start point; the derivative is zero."""
        return init_inner_state(
            params, self.solver.init(params, data.inner), UOROMemory(None, None)
        )

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Run the chain with its rank-one derivative; contract with the outer gradient."""
        data = draw_outer(data, self.outer_batch_size, key)
        check_unrolled("UORO", problem, self.solver, hyper, lower, data, key)
        # Step k uses fold_in(key, k), k < steps: the signs must not repeat those keys.
        signs_by = jax.random.fold_in(key, self.steps)
        before, _ = carry = start_solver(problem, self.solver, hyper, lower, data)
        factors = self._init_factors(problem, hyper, lower, data, signs_by)
        moving, fixed, merge = partition(carry)
        loss = inner_loss(problem)
        keys = draw_ahead(self.solver, data.inner, key, self.steps)

        def advance(loop: tuple, _: None) -> tuple[tuple, None]:
            k, moving, fixed, factors = loop

            def move(moving: list[Array], hyper: Hyper) -> tuple[list[Array], list[Array]]:
                key_k = step_key(keys, k)
                params, state = merge(moving, fixed)
                moved = self.solver.step(loss, params, hyper, data.inner, key_k, state)
                return partition(moved)[:2]

            signs = _signs(moving, jax.random.fold_in(signs_by, k + 1))
            moved, tangent, fixed = jax.jvp(
                lambda moving: move(moving, hyper), (moving,), (factors.state,), has_aux=True
            )
            pull = jax.vjp(lambda hyper: move(moving, hyper)[0], hyper)[1]
            factors = _update_factors(UOROMemory(tangent, factors.hyper), signs, pull(signs)[0])
            return (k + 1, moved, fixed, factors), None

        loop = (jnp.zeros((), jnp.int32), moving, fixed, factors)
        (_, moving, fixed, factors), _ = jax.lax.scan(advance, loop, length=self.steps)
        params, state = merge(moving, fixed)
        end = end_chain(problem, hyper, (params, state), data)
        value, (in_seen, in_hyper) = jax.value_and_grad(end.outer, (0, 1))(end.seen, hyper)
        grad = axpy(vdot(factors.state[: len(in_seen)], in_seen), factors.hyper, in_hyper)

        chain = (end.problem, hyper, before, params, data, key, lower.reference)
        passes = 5 * self.steps
        evidence, reference = compared_evidence(*chain, grad, solver=self.solver, passes=passes)
        taken = {"gradients": self.steps + 1, "jvps": self.steps, "vjps": self.steps}
        counts = Counts.of(hvps=evidence.counts.hvps, **taken)
        estimate = Estimate(value, grad, replace(evidence, counts=counts), end.aux)
        return estimate, InnerState(params, state, factors, reference)

    def _init_factors(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> UOROMemory:
        """Return the factors as carried; zero; or a sketch of ``problem.start``'s derivative."""

        def initial(hyper: Hyper) -> list[Array]:
            return partition(start_solver(problem, self.solver, hyper, lower, data))[0]

        if problem.start is None and lower.memory.state is not None:
            moving, fixed, merge = partition((lower.params, lower.solver_state))

            def again(moving: list[Array]) -> list[Array]:
                return partition(begin_again(self.solver, merge(moving, fixed)))[0]

            state = jax.jvp(again, (moving,), (lower.memory.state,))[1]
            return lower.memory._replace(state=state)
        moving, pull = jax.vjp(initial, hyper)
        none = UOROMemory(zeros_like(moving), zeros_like(hyper))
        if problem.start is None:
            return none
        signs = _signs(moving, jax.random.fold_in(key, 0))
        return _update_factors(none, signs, pull(signs)[0])


register_node(UORO, data_fields=["solver"], meta_fields=["steps", "outer_batch_size"])


def _signs(like: list, key: Key) -> list:
    return jax.tree.map(lambda x: x[0], dirs.draw(dirs.Random(1), like, key))


def _update_factors(factors: UOROMemory, signs: list, pulled: PyTree) -> UOROMemory:
    """Return ``(p s + q nu, r / p + pulled / q)`` with the scales of least variance."""
    p = _balance(factors.hyper, factors.state)
    q = _balance(pulled, signs)
    state = jax.tree.map(lambda s, nu: (p * s + q * nu).astype(s.dtype), factors.state, signs)
    hyper = jax.tree.map(lambda r, b: (r / p + b / q).astype(r.dtype), factors.hyper, pulled)
    return UOROMemory(state, hyper)


def _balance(hyper: Hyper, state: PyTree) -> Array:
    """Return ``sqrt(|hyper| / |state|)``; 1 where a factor is 0, as their product is."""
    over, under = norm(hyper), norm(state)
    either = (over == 0) | (under == 0)
    return jnp.where(either, 1, jnp.sqrt(over / jnp.where(either, 1, under)))
