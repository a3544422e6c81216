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
)
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
    register_node,
    require_positive,
    require_positive_int,
)

_WEIGHTS = (0.0, 1.0, 2.0)  # of outer / gamma, in the three chains


@dataclass(frozen=True)
class Penalty:
    """Value-function penalty: no Hessian, no Jacobian, no derivative of the solver.

    Three chains run side by side with the same minibatches: on ``inner``, and on ``inner + outer /
    gamma`` for the given ``gamma`` and for half of it. The difference of the two hypergradients is
    the leading error of the better one: ``evidence.bias = grad(gamma / 2) - grad(gamma)``, and
    ``grad - bias`` is wrong by O(1 / gamma^2) only. All chains are carried from call to call.

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
        loss, a problem with a proximal part (whose derivative in ``hyper`` is not known).

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
        if problem.prox is not None:
            raise ValueError(
                "Penalty compares values of the inner objective, and problem.prox gives none for "
                "its non-smooth part. Use Implicit with a proximal solver."
            )
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

        free = jax.grad(problem.inner, argnums=1)(params, hyper, data.inner)

        def hypergrad(gamma: Number, params: Params) -> Hyper:
            penalised = jax.grad(problem.inner, argnums=1)(params, hyper, data.inner)
            direct = jax.grad(problem.outer, argnums=1)(params, hyper, data.outer)
            return jax.tree.map(
                lambda d, a, b: (d + gamma * (a - b)).astype(d.dtype), direct, penalised, free
            )

        grad, rough = (
            hypergrad(self.gamma / weight, at)
            for weight, (at, _) in zip(_WEIGHTS[1:], penalised, strict=True)
        )
        bias = jax.tree.map(jnp.subtract, rough, grad)
        before, _ = start_solver(problem, self.solver, hyper, lower, data)
        residual, reference = find_progress(problem, hyper, before, params, data, lower.reference)
        counts = Counts.of(gradients=jnp.sum(taken) + 1)
        evidence = Evidence(residual, bias=bias, counts=counts)
        memory = jax.tree.map(lambda x: x[1:], chains)
        value = problem.outer(params, hyper, data.outer)
        return Estimate(value, grad, evidence), InnerState(params, state, memory, reference)


register_node(Penalty, data_fields=["solver", "gamma"], meta_fields=["steps", "outer_batch_size"])
