r"""The penalty method: a hypergradient from first derivatives only.

    w*   = argmin_w inner(w, h),   w_g = argmin_w inner(w, h) + outer(w, h) / gamma,
    grad = grad_h outer(w_g, h) + gamma [grad_h inner(w_g, h) - grad_h inner(w*, h)]

Kwon, Kwon, Wright, Nowak, "A Fully First-Order Method for Stochastic Bilevel Optimization" (F2SA),
ICML 2023, equation 4; its error is O(1 / gamma) (Lemma 3.1).
"""

from dataclasses import dataclass
from typing import ClassVar

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
    init_inner_state,
    note_outer_rows,
)
from bilevel.estimators.differences import Budget, error_by_differences
from bilevel.estimators.refusals import check_minimiser
from bilevel.estimators.residuals import find_progress
from bilevel.solvers import Carry, Solver, run_counted, start_solver
from bilevel.utils import (
    Counter,
    DataTree,
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    Scalar,
    axpy,
    norm,
    register_node,
    relative_size,
    require_positive,
    require_positive_int,
)

_WEIGHTS = (0.0, 1.0, 2.0)  # of outer / gamma, in the three chains
_COARSE = 1e-5  # rounding of a dtype above which differences of the chains are lost


@dataclass(frozen=True)
class Penalty:
    """Value-function penalty: no Hessian, no Jacobian, no derivative of the solver.

    Three chains run side by side with the same minibatches: on ``inner``, and on ``inner + outer /
    gamma`` for the given ``gamma`` and for half of it. The difference of the two hypergradients is
    the leading error of the better one: ``evidence.bias = grad(gamma / 2) - grad(gamma)``, and
    ``grad - bias`` is wrong by O(1 / gamma^2) only. All chains are carried from call to call.

    Gradients that the chains leave are those of the system ``H v = b`` that the difference stands
    for: ``evidence.linear_residual = |b + gamma (grad_w inner(w_g) - grad_w inner(w*))| / |b|``.
    Without second derivatives nothing divides it by the curvature: it counts as the error itself.

    A large ``gamma`` multiplies what the solver leaves unsolved and the rounding, while the bias
    falls as ``1 / gamma``. The outer loss is evaluated on all outer data at every step.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call; ``outer / gamma`` adds to
        the curvature that its step size must fit.
    gamma : weight of the inner problem against the outer loss.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : ``steps`` below 1, ``gamma`` not positive, a hyperparameter that enters neither
        loss, a problem with a proximal part (whose derivative in ``hyper`` is not known), an inner
        loss that computes in bfloat16.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Penalty(bl.GradientDescent(step_size=0.5), steps=100, gamma=100.0)
    """

    differentiates: ClassVar[str] = "values"  # what must have finite derivatives

    solver: Solver
    steps: int
    gamma: Number = 100.0
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Penalty", "steps", self.steps)
        require_positive("Penalty", "gamma", self.gamma)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the plain chain, and in memory the two penalised ones, ``[2, *leaf]``."""
        carry = (params, self.solver.init(params, data.inner))
        return init_inner_state(*carry, jax.tree.map(lambda x: jnp.stack([x, x]), carry))

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Move the three chains, compare the losses' derivatives in ``hyper`` at their ends."""
        data = draw_outer(data, self.outer_batch_size, key)
        _require_values(problem)
        check_minimiser("Penalty", problem, hyper, lower.params, data)

        def move(weight: Array, params: Params, state: PyTree) -> tuple[Carry, Counter | int]:
            def loss(params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
                penalty = weight * problem.outer(params, hyper, data.outer) / self.gamma
                return problem.inner(params, hyper, batch) + penalty

            carry = start_solver(problem, self.solver, hyper, InnerState(params, state), data)
            return run_counted(loss, self.solver, hyper, carry, data, key, steps=self.steps)

        def put_first(x: Array, rest: Array) -> Array:
            return jnp.concatenate([x[None], rest])

        # Chain 0 minimises the inner loss, 1 and 2 the penalised ones, side by side.
        chains = jax.tree.map(put_first, (lower.params, lower.solver_state), lower.memory)
        chains, taken = jax.vmap(move)(jnp.asarray(_WEIGHTS), *chains)
        (params, state), *penalised = [jax.tree.map(lambda x, i=i: x[i], chains) for i in range(3)]

        inner, outer = (jax.grad(loss, argnums=(0, 1)) for loss in (problem.inner, problem.outer))
        free = inner(params, hyper, data.inner)

        def differences(gamma: Number, params: Params) -> tuple[Params, Params, Hyper]:
            """Return ``-H v`` and ``b`` of the system behind it, and the hypergradient."""
            change = axpy(-1, free, inner(params, hyper, data.inner))
            b, direct = outer(params, hyper, data.outer)
            product, through = jax.tree.map(lambda x: (gamma * x).astype(x.dtype), change)
            return product, b, axpy(1, through, direct)

        (product, b, grad), (_, _, rough) = (
            differences(self.gamma / weight, at)
            for weight, (at, _) in zip(_WEIGHTS[1:], penalised, strict=True)
        )
        linear = relative_size(norm(axpy(1, product, b)), norm(b))
        bias = jax.tree.map(jnp.subtract, rough, grad)
        before, _ = start_solver(problem, self.solver, hyper, lower, data)
        residual, reference = find_progress(problem, hyper, before, params, data, lower.reference)
        counts = Counts.of(gradients=jnp.sum(taken) + 1)
        gamma = self.gamma / _WEIGHTS[1]
        adjoint = jax.tree.map(lambda x, y: gamma * (x - y), params, penalised[0][0])
        at = problem, hyper, params, data
        budget = Budget.of(problem, self.solver, data, params, 3 * self.steps)
        error = error_by_differences(*at, adjoint, axpy(1, product, b), grad, budget)
        evidence = Evidence(residual, linear, bias=bias, counts=counts, residual_error=error)
        evidence = note_outer_rows(evidence, self.outer_batch_size)
        memory = jax.tree.map(lambda x: x[1:], chains)
        value = problem.outer(params, hyper, data.outer)
        return Estimate(value, grad, evidence), InnerState(params, state, memory, reference)


register_node(Penalty, data_fields=["solver", "gamma"], meta_fields=["steps", "outer_batch_size"])


def _require_values(problem: Problem) -> None:
    """Raise ``ValueError`` where differences of the inner loss say nothing."""
    if problem.prox is not None:
        raise ValueError(
            "Penalty compares values of the inner objective, and problem.prox gives none for "
            "its non-smooth part. Use Implicit with a proximal solver."
        )
    if problem.compute_dtype is not None and jnp.finfo(problem.compute_dtype).eps > _COARSE:
        raise ValueError(
            "Penalty compares gradients that differ in their last digits, of which "
            f"{jnp.dtype(problem.compute_dtype).name} keeps none. Leave compute_dtype out, or "
            "take Reverse or Implicit."
        )
