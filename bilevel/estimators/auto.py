r"""The estimator that suits a problem, chosen while it is traced, by rules that were measured.

    losses with keys, a model state, a running loss          Reverse through the given solver
    a hyperparameter that the minimiser does not depend on   Reverse through the given solver
    Problem.prox                                             Implicit after the given solver
    quadratic, at most 64 params                             ClosedForm
    quadratic, at most 3000 params                           conjugate gradients; ClosedForm where
                                                             they have not got there in d/4 products
    anything else                                            Implicit after Newton-CG

The measurements are in ``docs/speed.md``.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    Estimator,
    InnerState,
    Problem,
    draw_outer,
    init_inner_state,
    note_outer_rows,
)
from bilevel.estimators.base import init_filled
from bilevel.estimators.closed_form import ClosedForm
from bilevel.estimators.implicit import Implicit
from bilevel.estimators.refusals import unused_by_minimiser
from bilevel.estimators.reverse import Reverse
from bilevel.linear import CG
from bilevel.solvers import Newton, Solver
from bilevel.utils import (
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    dtype,
    register_node,
    require_positive_int,
    require_tolerance,
    size,
    zeros_like,
)

# The residual to reach next, the one reached, 0 at first, the estimate and the inner state so far.
Progress: TypeAlias = tuple[Array, Array, Estimate, InnerState]

_SMALL, _DENSE = 64, 3000  # params up to which a factorisation costs nothing, or is worth a try
_NEWTON = 50  # most steps: convergence is quadratic, so far fewer are taken
_TIGHTER = 10  # how much smaller than the tolerance both residuals are to be
_LOOSER = 2  # than the tolerance to the power 2/3, before a step on both levels
_LOOSEST = 0.03  # above it a step on both levels need not converge
_FURTHER = 3, 30  # by how much both residuals fall, from and to, when the error is too large
_FORCING = 0.1  # to which Newton's systems are solved


class Choice(NamedTuple):
    """An ``estimator``, its ``fallback`` where the residuals stay too large, and the ``reason``."""

    estimator: Estimator
    fallback: Estimator | None
    reason: str


@dataclass(frozen=True)
class Auto:
    """Any problem: the estimator is chosen from what the problem says, :meth:`choose` tells which.

    Looks at structure alone (sizes, ``quadratic``, ``prox``, what the minimiser depends on), so the
    choice costs nothing at run time, with one exception: on a quadratic inner loss conjugate
    gradients try first, and the closed form takes over where they fail, at 1.25 times the products
    of the better one.

    Parameters
    ----------
    tolerance : relative error of the hypergradient that is good enough. A Newton step on both
        levels takes the first-order error off (``Implicit(correct=True)``). On a smooth problem
        that is not declared quadratic the residuals go down by 3 to 30 at a time until
        ``evidence.residual_error`` is below it; where rounding or the number of steps ends that
        first, ``residual_error`` says so.
    solver, steps : the inner solver, and its number of steps, where none can be chosen: to
        differentiate its steps (learning rates, start points), or for ``Problem.prox``.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : no ``solver`` where one is needed; what the chosen estimator raises.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     quadratic=True,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> w, h = jnp.array(0.0), jnp.array(1.0)
    >>> bl.Auto().choose(problem, h, w, data).reason
    'ClosedForm: the inner loss is quadratic with 1 params'
    >>> estimate, state = bl.hypergradient(problem, bl.Auto(), h, w, data, jax.random.key(0))
    >>> estimate.grad.round(4)  # (w* - 1.5) dw*/dh, w* = 2 / (1 + h)
    Array(0.25, dtype=float32)
    """

    handles: ClassVar[tuple[str, ...]] = ("has_state", "has_aux", "running")

    tolerance: Number = 1e-3
    solver: Solver | None = None
    steps: int = 1000
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_tolerance("Auto", self.tolerance)
        require_positive_int("Auto", "steps", self.steps)

    def choose(self, problem: Problem, hyper: Hyper, params: Params, data: Data) -> Choice:
        """Return what will run, and why."""
        d = size(params)
        linear = CG(tol=_above_rounding(self.tolerance / _TIGHTER, params))
        if not problem.is_plain:
            why = "the losses have keys, a model state, side results or a running loss"
            return Choice(Reverse(self._given(why), self.steps), None, f"Reverse: {why}")
        if unused := unused_by_minimiser(problem, hyper, params, data):
            why = f"the inner minimiser does not depend on {', '.join(unused)}"
            return Choice(Reverse(self._given(why), self.steps), None, f"Reverse: {why}")
        if problem.prox is not None:
            why = "the problem has a non-smooth part"
            return Choice(Implicit(self._given(why), self.steps, linear), None, f"Implicit: {why}")
        if not problem.quadratic or d > _DENSE:
            kind = "quadratic, of too many params to factorise" if problem.quadratic else "smooth"
            why = f"Implicit after Newton-CG: the inner loss is {kind}"
            return Choice(self._smooth(self._begin(params)), None, why)
        if d <= _SMALL:
            why = f"the inner loss is quadratic with {d} params"
            return Choice(ClosedForm(), None, f"ClosedForm: {why}")
        # One Newton step and the adjoint: d / 4 products in all.
        short = replace(linear, max_steps=d // 8)
        why = f"the inner loss is quadratic with {d} params"
        why = f"conjugate gradients, and ClosedForm where they need too many products: {why}"
        return Choice(Implicit(Newton(short, tol=linear.tol), 1, short), ClosedForm(), why)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the start point; all else waits for the problem."""
        return replace(init_inner_state(params, None), memory=None)

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Take a step of the chosen estimator, and of its fallback if need be."""
        data = draw_outer(data, self.outer_batch_size, key)
        estimate, after = self._step(problem, hyper, lower, data, key)
        evidence = note_outer_rows(estimate.evidence, self.outer_batch_size)
        return replace(estimate, evidence=evidence), after

    def _step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        choice = self.choose(problem, hyper, lower.params, data)
        lower = self._init_chosen(choice.estimator, problem, hyper, lower, data, key)
        if getattr(choice.estimator, "correct", False):
            return self._improve(problem, hyper, lower, data, key)
        estimate, after = choice.estimator.step(problem, hyper, lower, data, key)
        if choice.fallback is None:
            return estimate, after
        fallback, evidence = choice.fallback, estimate.evidence
        enough = 2 * _above_rounding(self.tolerance / _TIGHTER, lower.params)
        good = (evidence.inner_residual <= enough) & (evidence.linear_residual <= enough)

        def again() -> tuple[Estimate, InnerState]:
            other, moved = fallback.step(problem, hyper, lower, data, key)
            counts = jax.tree.map(jnp.add, evidence.counts, other.evidence.counts)
            left = other.evidence.linear_residual  # a closed form is as wrong as that
            left = None if evidence.residual_error is None else left.astype(dtype(lower.params))
            made = replace(other.evidence, counts=Counts(*counts), residual_error=left)
            other = replace(other, evidence=made)
            return other, replace(after, params=moved.params, reference=moved.reference)

        return jax.lax.cond(good, lambda: (estimate, after), again)

    def _smooth(self, tol: Number) -> Implicit:
        """Newton-CG and the adjoint, both to the residual ``tol``, and a step on both levels."""
        return Implicit(Newton(CG(tol=_FORCING), tol=tol), _NEWTON, CG(tol=tol), correct=True)

    def _improve(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Solve both systems, further until the error is within the tolerance or rounding."""
        least = _above_rounding(0, lower.params)

        def solve(tol: Array, lower: InnerState) -> tuple[Estimate, InnerState]:
            return self._smooth(tol).step(problem, hyper, lower, data, key)

        def unfinished(carry: Progress) -> Array:
            _, reached, estimate, _ = carry
            wrong = estimate.evidence.residual_error > self.tolerance
            return (reached == 0) | (wrong & (reached > least))

        def advance(carry: Progress) -> Progress:
            tol, _, before, lower = carry
            found, lower = solve(tol, lower)
            counts = jax.tree.map(jnp.add, before.evidence.counts, found.evidence.counts)
            evidence = replace(found.evidence, counts=Counts(*counts))
            excess = evidence.residual_error / jnp.maximum(self.tolerance, least)
            further = jnp.clip(_LOOSER * excess ** (2 / 3), *_FURTHER)
            return jnp.maximum(tol / further, least), tol, replace(found, evidence=evidence), lower

        # The first time is a turn of the loop too, so that there is one copy of it to compile.
        tol = self._begin(lower.params)
        nothing = zeros_like(jax.eval_shape(solve, tol, lower)[0])
        begin = tol, jnp.zeros_like(tol), nothing, lower
        _, _, estimate, lower = jax.lax.while_loop(unfinished, advance, begin)
        return estimate, lower

    def _begin(self, params: PyTree) -> Array:
        return _above_rounding(jnp.minimum(self.tolerance ** (2 / 3) / _LOOSER, _LOOSEST), params)

    def _given(self, why: str) -> Solver:
        if self.solver is None:
            raise ValueError(
                f"Auto needs solver=, for example SGD(step_size, batch_size): {why}, so the "
                "hypergradient depends on which solver runs."
            )
        return self.solver

    def _init_chosen(
        self,
        chosen: Estimator,
        problem: Problem,
        hyper: Hyper,
        lower: InnerState,
        data: Data,
        key: Key,
    ) -> InnerState:
        """Return the chosen estimator's own state until a first call has measured the reference."""
        initial = init_filled(problem, chosen, hyper, lower.params, data, key)
        if lower.solver_state is None:
            return initial
        carried = lower.reference > 0
        return jax.tree.map(lambda new, old: jnp.where(carried, old, new), initial, lower)


def _above_rounding(residual: Number, params: PyTree) -> Array:
    kind = dtype(params)
    return jnp.maximum(jnp.asarray(residual, kind), 20 * jnp.finfo(kind).eps)


register_node(Auto, data_fields=["tolerance", "solver"], meta_fields=["steps", "outer_batch_size"])
