r"""Implicit differentiation: the inner optimality condition, solved for its sensitivity.

    H v = grad_params outer,   grad = grad_hyper outer - C^T v,
    H = d^2 inner / d params^2,   C = d^2 inner / d params d hyper,   at the solver's last iterate

Bengio 2000; Pedregosa, ICML 2016 (HOAG); Rajeswaran et al., NeurIPS 2019. Exact at the minimiser;
elsewhere wrong by O(inner residual + linear residual), both reported. The system of a problem with
a proximal part is in ``adjoint.py``.
"""

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
    init_inner_state,
    inner_loss,
    note_outer_rows,
    require_window,
)
from bilevel.estimators.adjoint import adjoint_system, proximal_step
from bilevel.estimators.equation_system import equation_system, require_solvable
from bilevel.estimators.reference import raise_to_exact
from bilevel.estimators.refusals import check_minimiser
from bilevel.estimators.remainder import Budget, system_remainder
from bilevel.estimators.residuals import full_gradient, inner_residual
from bilevel.estimators.systems import (
    Answer,
    System,
    correct_answer,
    first_order_bias,
    left_by_bias,
    measure_distance,
    solve_from_zero,
)
from bilevel.estimators.units import step_in_units
from bilevel.linear import CG, LinearSolver, solve_scaled
from bilevel.solvers import (
    LBFGS,
    Carry,
    Newton,
    Solver,
    draw_ahead,
    end_chain,
    run_counted,
    start_solver,
)
from bilevel.utils import (
    Counter,
    Hyper,
    Key,
    Number,
    Params,
    axpy,
    register_node,
    require_positive,
    require_positive_int,
    zeros_like,
)

Window: TypeAlias = tuple[Carry, Params]  # the chain, and the mean of its params


@dataclass(frozen=True)
class Implicit:
    """The implicit function theorem at the iterate that the solver reached.

    Never forms the Hessian: ``linear`` sees products with it, on all inner data. The adjoint ``v``
    is carried from call to call and starts the next solve. With ``Problem.prox`` (lasso, elastic
    net, group lasso) the system is that of the proximal fixed point, restricted to the support; the
    proximal map must be the exact one, and the support must not be about to change.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    linear : solver of the adjoint system; :class:`bilevel.CG` needs a positive definite Hessian,
        an equation one without symmetry, :class:`bilevel.GMRES`.
    damping : solve ``(H + damping I) v = b`` instead. It tames a Hessian that is singular or
        indefinite, and it biases ``grad`` by O(damping / smallest curvature); the linear residual
        is that of the damped system and does not show this, ``bias=True`` does. ``None``: none.
    average : differentiate at the mean of the last ``average`` iterates, which SGD's noise perturbs
        less than the last one; 0 takes the last.
    bias : fill ``evidence.bias``, the error of ``grad`` to first order in what is left of the inner
        gradient, of the linear residual and of the damping. Costs two more linear solves.
    correct : take that error off, by a Newton step on both levels: params, their outer loss and
        ``grad`` are those after it. ``evidence.residual_error`` is ``s sqrt(q)``: the step changes
        ``grad``, or the adjoint if that is more, by a share s; r is the largest of what its systems
        leave, and the shares to which both residuals fall; q that of r and s. Above r = .04 it is
        times ``(r / .04)^1.25``, above .18 more. No step where q is 1 or more. After
        :class:`Newton` in units of the params in which all of them have about curvature 1.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : ``steps`` below 1, ``average`` above ``steps``, damping that is not positive, what
        ``bias`` and ``correct`` are not for; a hyperparameter that enters neither loss (a step
        size, a start point), for which the answer would be a silent 0.

    Examples
    --------
    >>> import bilevel as bl
    >>> solver = bl.GradientDescent(step_size=0.5)
    >>> estimator = bl.Implicit(solver, steps=100, linear=bl.CG(tol=1e-8))
    """

    differentiates: ClassVar[str] = "minimiser"  # what must have finite derivatives
    handles: ClassVar[tuple[str, ...]] = ("has_state", "has_aux", "is_equation")

    solver: Solver
    steps: int
    linear: LinearSolver = CG()
    damping: Number | None = None
    average: int = 0
    bias: bool = False
    correct: bool = False
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Implicit", "steps", self.steps)
        if self.damping is not None:
            require_positive("Implicit", "damping", self.damping)
        if self.correct and (self.bias or self.damping is not None):
            raise ValueError(
                "Implicit: correct=True takes off what bias=True measures, of an undamped system. "
                "Set one of bias and correct, and no damping with correct."
            )
        if not 0 <= self.average <= self.steps:
            raise ValueError(
                f"Implicit: average must lie between 0 and steps={self.steps}, got {self.average}."
            )

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the start point, and a zero adjoint."""
        return init_inner_state(params, self.solver.init(params, data.inner), zeros_like(params))

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Solve the inner problem, then the adjoint system at its solution."""
        require_solvable(problem, self.linear, bias=self.bias, correct=self.correct)
        # Newton's steps are the same in all units, and what is said of their error is to be so too.
        scaled = self.correct and isinstance(self.solver, Newton)
        step = partial(step_in_units, self._step) if scaled else self._step
        return step(problem, hyper, lower, data, key)

    def _step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        data = draw_outer(data, self.outer_batch_size, key)
        check_minimiser("Implicit", problem, hyper, lower.params, data)
        before, _ = carry = start_solver(problem, self.solver, hyper, lower, data)
        (params, state), taken = self._minimise(problem, hyper, carry, data, key)
        reached = end_chain(problem, hyper, (params, state), data)
        problem = reached.problem.exact

        key, key_system, key_bias = jax.random.split(jax.random.fold_in(key, self.steps), 3)
        step, used = proximal_step(problem, self.solver, hyper, params, state, data, key_system)
        settings = {"damping": self.damping, "step": step, "key": key_system}
        make = equation_system if problem.is_equation else adjoint_system
        known = getattr(self.solver, "approximate_inverse", None)
        inverse = partial(known, state) if known is not None and problem.prox is None else None

        def system_at(params: Params) -> System:
            found = make(problem, hyper, params, data, **settings)
            return found._replace(operator=replace(found.operator, inverse=inverse))

        begin = (system := system_at(params)).within(lower.memory)
        adjoint = solve_scaled(self.linear, system.operator, system.rhs, begin, key)

        # A proximal system costs one product and one gradient more: those of the mapping itself.
        smooth = problem.prox is None
        end = system.gradient if smooth else full_gradient(problem, hyper, params, data)
        grad = system.grad(adjoint.x)
        answer = Answer(params, adjoint.x, system.value, grad, end, adjoint.residual)
        bias, gradients = None, taken + (1 if smooth else 2)
        hvps = adjoint.matvecs + used + (0 if smooth else 1)
        budget = Budget.of(problem, self.solver, data, params, self._passes())
        if self.bias or self.correct:
            solve = solve_from_zero(self.linear, key_bias)
            distance = measure_distance(system_at, params, adjoint.x, solve)
            hvps = hvps + distance.products
            if self.correct:
                answer, error = correct_answer(system_at, answer, distance)
                gradients, hvps = gradients + 1, hvps + 1
                if budget.exact:
                    error = raise_to_exact(error, answer.grad, problem, hyper, answer.params, data)
            else:
                bias = first_order_bias(system_at, params, adjoint.x, distance)
                error = left_by_bias(bias, grad, distance)
        else:
            now = adjoint.x, grad
            error = system_remainder(problem, hyper, params, data, system_at, *now, budget)
        residual, reference = inner_residual(
            problem, hyper, before, answer.gradient, data, lower.reference
        )
        counts = Counts.of(gradients=gradients, hvps=hvps)
        evidence = Evidence(
            residual, answer.residual, bias=bias, counts=counts, residual_error=error
        )
        evidence = note_outer_rows(evidence, self.outer_batch_size)
        estimate = Estimate(answer.value, answer.grad, evidence, reached.aux)
        # A poor adjoint is a poor start for the next solve: worse than 0 above 1.
        carried = jax.tree.map(lambda x: jnp.where(answer.residual < 1, x, 0), answer.adjoint)
        return estimate, InnerState(answer.params, state, carried, reference)

    def scaled(self, times: int) -> "Implicit":
        """Return the estimator with so many times its steps, and the window averaged over."""
        require_window(self, self.solver, self.average)
        return replace(self, steps=times * self.steps, average=times * self.average)

    def _passes(self) -> int:
        """Return how many gradients a call costs, about, a product of the adjoint being some."""
        each = 10 if isinstance(self.solver, Newton) else 2 if isinstance(self.solver, LBFGS) else 1
        adjoint = 100 if getattr(self.solver, "batch_size", None) else 200
        return each * self.steps + adjoint

    def _minimise(
        self, problem: Problem, hyper: Hyper, carry: Carry, data: Data, key: Key
    ) -> tuple[Carry, Counter | int]:
        """Return ``(params, solver state)``, the params averaged if asked, and the steps taken."""
        keys = draw_ahead(self.solver, data.inner, key, self.steps)
        steps = partial(run_counted, inner_loss(problem), self.solver, hyper, data=data, key=keys)
        first = self.steps - self.average
        carry, taken = steps(carry, steps=first)

        def advance(loop: Window, k: Array) -> tuple[Window, Counter]:
            carry, mean = loop
            carry, one = steps(carry, steps=1, first=first + k)
            mean = axpy(1 / (k + 1), axpy(-1, mean, carry[0]), mean)
            return (carry, mean), jnp.asarray(one, jnp.int32)

        if not self.average:
            return carry, taken
        begun, window = (carry, carry[0]), jnp.arange(self.average)
        (carry, mean), each = jax.lax.scan(advance, begun, window)
        return (mean, carry[1]), taken + jnp.sum(each)


register_node(
    Implicit,
    data_fields=["solver", "linear", "damping"],
    meta_fields=["steps", "average", "bias", "correct", "outer_batch_size"],
)
