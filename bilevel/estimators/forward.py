r"""Forward mode: the derivative of the SGD iterates, with the iterates' own minibatches.

    x_{k+1} = x_k - eta_k grad_x g(x_k, h; b_k)
    D_{k+1} = D_k - eta_k [H_xx g(x_k, h; b_k) D_k + H_xh g(x_k, h; b_k)],   D_k = d x_k / d h

Iutzeler, Pauwels, Vaiter, "Derivatives of Stochastic Gradient Descent in Parametric Optimization",
NeurIPS 2024. Written for any solver: ``D`` is pushed through ``solver.step``, momentum included.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.estimate import Counts, Estimate, Evidence, Lower, begin
from bilevel.estimators.base import check_unrolled, full_gradient, inner_residual
from bilevel.messages import require_positive_int
from bilevel.problem import Data, Problem, inner_loss
from bilevel.solvers.base import Solver, run, start
from bilevel.trees import PyTree, basis, partition, size, unbasis


class Memory(NamedTuple):
    """``tangents`` of all moving leaves, ``[p, *leaf]``; ``twin``, the independent chain."""

    tangents: Any
    twin: Any


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

    Raises
    ------
    ValueError : ``steps`` below 1; ``start + average`` above ``steps``; a hyperparameter that
        nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Forward(bl.SGD(step_size=0.1, batch_size=32), steps=1000, average=200)
    """

    solver: Solver
    steps: int
    start: int = 0
    average: int = 0
    cross: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that leave no step to differentiate."""
        require_positive_int("Forward", "steps", self.steps)
        if self.start < 0 or self.average < 0 or self.start + max(self.average, 1) > self.steps:
            raise ValueError(
                f"Forward: start={self.start} and average={self.average} must be at least 0 and "
                f"leave room within steps={self.steps}."
            )

    def init(self, params: PyTree, data: Data) -> Lower:
        """Start points of the chain (and of its twin); tangents are zero."""
        state = self.solver.init(params, data.inner)
        return begin(params, state, Memory(None, (params, state) if self.cross else None))

    def step(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """Run the chain with its derivative; contract with the outer gradient."""
        check_unrolled("Forward", problem, self.solver, hyper, lower, data, key)
        before, _ = start(problem, self.solver, hyper, lower, data)
        (params, state), tangents = self._chain(problem, hyper, lower, data, key)
        columns = params_tangents(tangents, params)

        where, twin = params, None
        if self.cross:
            twin = self._twin(problem, hyper, lower, data, jax.random.fold_in(key, self.steps))
            where = twin[0]
        outer_grad = jax.grad(problem.outer, argnums=(0, 1))
        in_params, in_hyper = outer_grad(where, hyper, data.outer)
        grad = jax.tree.map(jnp.add, pull(columns, in_params, hyper), in_hyper)

        end = full_gradient(problem, hyper, params, data)
        residual, reference = inner_residual(problem, hyper, before, end, data, lower.reference)
        gradients = self.steps * (2 if self.cross else 1) + 1
        counts = Counts.of(gradients=gradients, jvps=(self.steps - self.start) * size(hyper))
        value = problem.outer(params, hyper, data.outer)
        estimate = Estimate(value, grad, Evidence(inner_residual=residual, counts=counts))
        return estimate, Lower(params, state, Memory(tangents, twin), reference)

    def _chain(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Any, Any]:
        """``((params, state), tangents)`` after all steps, averaged if asked."""
        directions = basis(hyper)
        loss, solver = inner_loss(problem), self.solver
        carry, tangents = _begin(problem, solver, hyper, lower, data, directions)
        if self.start:
            carry = run(loss, solver, hyper, carry, data, key, steps=self.start)
        moving, fixed, merge = partition(carry)

        def advance(loop: Any, _: None) -> tuple[Any, None]:
            k, moving, fixed, tangents, mean = loop
            key_k = jax.random.fold_in(key, k)

            def move(moving: list, hyper: PyTree) -> Any:
                params, state = merge(moving, fixed)
                moved = solver.step(loss, params, hyper, data.inner, key_k, state)
                return partition(moved)[:2]

            moving, tangents, fixed = push(move, (moving, hyper), (tangents, directions))
            if mean is not None:
                weight = 1 / (k - (self.steps - self.average) + 1)
                mean = jax.tree.map(
                    lambda m, x: (m + weight * (x - m)).astype(m.dtype), mean, (moving, tangents)
                )
            return (k + 1, moving, fixed, tangents, mean), None

        loop = (jnp.asarray(self.start, jnp.int32), moving, fixed, tangents, None)
        loop, _ = jax.lax.scan(advance, loop, length=self.steps - self.start - self.average)
        if self.average:
            loop, _ = jax.lax.scan(advance, (*loop[:4], (loop[1], loop[3])), length=self.average)
            return merge(loop[4][0], loop[2]), loop[4][1]
        return merge(loop[1], loop[2]), loop[3]

    def _twin(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[PyTree, PyTree]:
        """The independent chain after as many steps, from other keys."""
        params, state = lower.memory.twin
        carry = start(problem, self.solver, hyper, Lower(params, state), data)
        return run(inner_loss(problem), self.solver, hyper, carry, data, key, steps=self.steps)


jax.tree_util.register_dataclass(
    Forward, data_fields=["solver"], meta_fields=["steps", "start", "average", "cross"]
)


def push(fn: Any, primals: tuple, tangents: tuple) -> tuple[Any, Any, Any]:
    """``fn(*primals)``, its derivative along a leading axis of tangents, and its auxiliaries."""

    def one(*tangent: Any) -> Any:
        return jax.jvp(fn, primals, tangent, has_aux=True)

    return jax.vmap(one, out_axes=(None, 0, None))(*tangents)


def params_tangents(tangents: list, params: PyTree) -> PyTree:
    """The part of the tangents that belongs to ``params``, ``[p, *leaf]`` for each leaf."""
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, tangents[: len(leaves)])


def pull(columns: PyTree, cotangent: PyTree, hyper: PyTree) -> PyTree:
    """``D^T cotangent`` as a tree like ``hyper``, ``columns`` being the rows of ``D^T``."""
    products = jax.tree.map(lambda d, g: jnp.tensordot(d, g, g.ndim), columns, cotangent)
    return unbasis(jnp.sum(jnp.stack(jax.tree.leaves(products)), axis=0), hyper)


def _begin(
    problem: Problem, solver: Solver, hyper: PyTree, lower: Lower, data: Data, directions: PyTree
) -> tuple[Any, Any]:
    """Start point and its tangents: those carried over, or the derivative of ``problem.start``."""
    if problem.start is not None:

        def initial(hyper: PyTree) -> Any:
            return partition(start(problem, solver, hyper, lower, data))[:2]

        _, tangents, _ = push(initial, (hyper,), (directions,))
        return start(problem, solver, hyper, lower, data), tangents
    carry = (lower.params, lower.solver_state)
    if lower.memory.tangents is not None:
        return carry, lower.memory.tangents
    p, (moving, _, _) = size(hyper), partition(carry)
    return carry, [jnp.zeros((p, *leaf.shape), leaf.dtype) for leaf in moving]
