r"""Richardson-Romberg extrapolation: two step sizes remove the O(step size) bias.

    E h(eta) = h* + c eta + O(eta^2)   =>   2 h(eta) - h(2 eta) = h* + O(eta^2),
    c eta ~ h(2 eta) - h(eta)

Constant-step SGD on a loss that is not quadratic does not centre on the minimiser: Dieuleveut,
Durmus, Bach, "Bridging the Gap between Constant Step Size SGD and Markov Chains", Annals of
Statistics 2020, section 3.2 for the iterates; here for value and hypergradient.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    Estimator,
    Evidence,
    InnerState,
    Problem,
    Relative,
    Schedule,
)
from bilevel.estimators.compared import find_exact
from bilevel.estimators.rebuild import innermost_estimator, map_innermost
from bilevel.solvers import Solver
from bilevel.utils import Hyper, Key, Number, Params, dtype, register_node


@dataclass(frozen=True)
class Richardson:
    """``2 h(eta) - h(2 eta)`` of any estimator whose solver has a constant step size ``eta``.

    Both chains see the same minibatches, so that most of the noise cancels in their difference;
    they run side by side. ``value`` is extrapolated too; ``params`` and ``inner_residual`` are
    those of the chain at ``eta``. What is removed is no error of ``grad``, and not in the evidence;
    what no step size explains (damping, too few steps) stays, and is. A standard error that the
    estimator reports turns into a bound, ``2 e(eta) + e(2 eta)``: for an honest one put the
    extrapolation inside, ``Replicated(Richardson(estimator), n)``.

    Time and memory are twice the estimator's: with :class:`Forward` and :class:`SAGA` two tables of
    ``n size(params) size(hyper)`` numbers are carried from call to call (half a gigabyte for 100
    rows, 6 600 params and 100 hyperparameters in float32); take :class:`SVRG` there.

    The solver must be stable at ``2 eta``, and ``steps`` enough to forget the start at ``eta``.

    Parameters
    ----------
    estimator : with a ``solver`` (or an estimator that has one) whose ``step_size`` is a number.

    Raises
    ------
    ValueError : no such step size: there is none, or it is a schedule or a hyperparameter.

    Examples
    --------
    >>> import bilevel as bl
    >>> one = bl.Richardson(bl.Forward(bl.SGD(step_size=0.1, batch_size=32), steps=1000))
    >>> estimator = bl.Replicated(one, n=8)
    """

    estimator: Estimator

    def __post_init__(self) -> None:
        """Validate that the innermost solver has a step size that can be doubled."""
        _require_step_size(self.estimator)

    @property
    def solver(self) -> Solver | None:
        """The inner solver at ``2 eta``, which diverges first: :func:`bilevel.tune` asks it why."""
        return getattr(_with_step_size(self.estimator, 2), "solver", None)

    def init(self, params: Params, data: Data) -> InnerState:
        """Both chains at one start point; memory holds a whole :class:`InnerState` for each."""
        one = self.estimator.init(params, data)
        return InnerState(
            one.params,
            one.solver_state,
            jax.tree.map(lambda x: jnp.stack([x, x]), one),
            one.reference,
        )

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Take one step at ``eta`` and at ``2 eta``, with the same key."""

        def one(factor: Array, chain: InnerState) -> tuple[Estimate, InnerState]:
            return _with_step_size(self.estimator, factor).step(problem, hyper, chain, data, key)

        factors = jnp.array([1, 2], dtype(lower.params))
        both, chains = jax.vmap(one)(factors, lower.memory)
        fine: InnerState = jax.tree.map(lambda x: x[0], chains)
        value, grad = jax.tree.map(lambda x: 2 * x[0] - x[1], (both.value, both.grad))

        got = both.evidence
        evidence = Evidence(
            inner_residual=jax.tree.map(lambda x: x[0], got.inner_residual),
            linear_residual=jax.tree.map(jnp.max, got.linear_residual),
            standard_error=jax.tree.map(lambda x: 2 * x[0] + x[1], got.standard_error),
            counts=Counts(*(jnp.sum(x, dtype=jnp.int32) for x in got.counts)),
            derivative_residual=jax.tree.map(jnp.max, got.derivative_residual),
            residual_error=self._left(problem, hyper, fine, data, got.residual_error, grad),
            freedom=jax.tree.map(lambda x: x[0], got.freedom),
            directions_only=got.directions_only,
            not_measured=got.not_measured,
        )
        lower = InnerState(fine.params, fine.solver_state, chains, fine.reference)
        aux = jax.tree.map(lambda x: x[0], both.aux)
        return Estimate(value, grad, evidence, aux), lower

    def _left(
        self,
        problem: Problem,
        hyper: Hyper,
        fine: InnerState,
        data: Data,
        errors: Array | None,
        grad: Hyper,
    ) -> Array | None:
        """Return the error of the extrapolated gradient, ``()``, or what both chains' tell of it.

        An error that does not depend on the step size stays; one of too few steps is larger at
        ``eta`` than at ``2 eta``, and grows.
        """
        if errors is None:
            return None
        exact = find_exact(problem, self.estimator, hyper, fine.params, data)
        if exact is not None:
            return exact.error(grad)
        return jnp.maximum(errors[0], 2 * errors[0] - errors[1])


register_node(Richardson)


def _require_step_size(estimator: Estimator) -> None:
    """Raise unless the innermost estimator's solver has a number that can be doubled."""
    estimator = innermost_estimator(estimator)
    if not callable(getattr(estimator, "step", None)):
        return  # a placeholder: JAX rebuilds estimators around anything
    solver: Any = getattr(estimator, "solver", None)
    if hasattr(solver, "step_size") and not isinstance(solver.step_size, Schedule | Relative):
        return
    found = f"{type(estimator if solver is None else solver).__name__} has none"
    if solver is not None and hasattr(solver, "step_size"):
        found = f"{type(solver).__name__} has {solver.step_size!r}"
    raise ValueError(
        f"Richardson needs a solver whose step_size is a number, which it can double: {found}. "
        "Use SGD(step_size=number), or an estimator that needs no correction."
    )


def _with_step_size(estimator: Estimator, factor: Number) -> Estimator:
    """Return the estimator with the step size of its innermost solver multiplied."""

    def scale(inside: Any) -> Estimator:
        solver = replace(inside.solver, step_size=inside.solver.step_size * factor)
        return replace(inside, solver=solver)

    return map_innermost(estimator, scale)
