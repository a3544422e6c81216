r"""Implicit differentiation: the inner optimality condition, solved for its sensitivity.

    H v = grad_params outer,   grad = grad_hyper outer - C^T v,
    H = d^2 inner / d params^2,   C = d^2 inner / d params d hyper,   at the solver's last iterate

Bengio 2000; Pedregosa, ICML 2016 (HOAG); Rajeswaran et al., NeurIPS 2019. Exact at the minimiser;
elsewhere wrong by O(inner residual + linear residual), both reported.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.estimate import Counts, Estimate, Evidence, Lower, begin
from bilevel.estimators.base import check_visible, inner_residual
from bilevel.linear import CG, LinearSolver
from bilevel.messages import require_positive_int
from bilevel.problem import Data, Problem, inner_loss
from bilevel.solvers.base import Solver, run, start
from bilevel.trees import PyTree, zeros_like


@dataclass(frozen=True)
class Implicit:
    """The implicit function theorem at the iterate that the solver reached.

    Never forms the Hessian: ``linear`` sees products with it, on all inner data. The adjoint ``v``
    is carried from call to call and starts the next solve.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    linear : solver of the adjoint system; :class:`bilevel.CG` needs a positive definite Hessian.

    Raises
    ------
    ValueError : ``steps`` below 1; a hyperparameter that enters neither loss (a step size, a start
        point), for which the answer would be a silent 0.

    Examples
    --------
    >>> import bilevel as bl
    >>> solver = bl.GradientDescent(step_size=0.5)
    >>> estimator = bl.Implicit(solver, steps=100, linear=bl.CG(tol=1e-8))
    """

    solver: Solver
    steps: int
    linear: LinearSolver = CG()

    def __post_init__(self) -> None:
        """Refuse a count of steps that does nothing."""
        require_positive_int("Implicit", "steps", self.steps)

    def init(self, params: PyTree, data: Data) -> Lower:
        """Start point, and a zero adjoint."""
        return begin(params, self.solver.init(params, data.inner), zeros_like(params))

    def step(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """Solve the inner problem, then the adjoint system at its solution."""
        self._check(problem, hyper, lower, data)
        before, _ = carry = start(problem, self.solver, hyper, lower, data)
        params, state = run(
            inner_loss(problem), self.solver, hyper, carry, data, key, steps=self.steps
        )

        def inner_grad(params: PyTree) -> PyTree:
            return jax.grad(problem.inner)(params, hyper, data.inner)

        def in_hyper(params: PyTree) -> PyTree:
            return jax.grad(problem.inner, argnums=1)(params, hyper, data.inner)

        outer = jax.value_and_grad(problem.outer, argnums=(0, 1))
        value, (b, direct) = outer(params, hyper, data.outer)
        end, hvp = jax.linearize(inner_grad, params)
        adjoint = self.linear.solve(hvp, b, lower.memory, jax.random.fold_in(key, self.steps))
        cross = jax.jvp(in_hyper, (params,), (adjoint.x,))[1]
        grad = jax.tree.map(jnp.subtract, direct, cross)

        residual, reference = inner_residual(problem, hyper, before, end, data, lower.reference)
        counts = Counts.of(gradients=self.steps + 1, hvps=adjoint.matvecs)
        evidence = Evidence(residual, adjoint.residual, counts=counts)
        return Estimate(value, grad, evidence), Lower(params, state, adjoint.x, reference)

    def _check(self, problem: Problem, hyper: PyTree, lower: Lower, data: Data) -> None:
        def everything(hyper: PyTree) -> Any:
            at = lower.params
            outer = jax.value_and_grad(problem.outer)(at, hyper, data.outer)
            return jax.grad(problem.inner)(at, hyper, data.inner), outer

        check_visible(
            "Implicit", everything, hyper,
            "the inner minimiser does not depend on it (a step size, a start point, or nothing at "
            "all), so its hypergradient would be a silent 0. Use Forward or Reverse, which "
            "differentiate the solver's steps.",
        )  # fmt: skip


jax.tree_util.register_dataclass(Implicit, data_fields=["solver", "linear"], meta_fields=["steps"])
