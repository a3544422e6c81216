"""What an estimator returns: a value, a hypergradient, and the evidence for it."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from bilevel.utils import Count, FloatTree, Params, PyTree, Scalars, dtype, register_node


class Counts(NamedTuple):
    """Calls to the oracles of the inner loss, each a scalar: the honest cost of an estimate.

    ``gradients`` of the inner loss in ``params`` (on the solver's batch, or on all data for a
    residual); ``hvps`` Hessian-vector products; ``jvps`` tangents pushed through one solver step;
    ``vjps`` cotangents pulled back through one solver step.
    """

    gradients: Count = 0
    hvps: Count = 0
    jvps: Count = 0
    vjps: Count = 0

    @classmethod
    def of(cls, **calls: Count) -> "Counts":
        """Return counts as int32 arrays, so that the structure never depends on who counted."""
        return cls(*(jnp.asarray(calls.get(name, 0), jnp.int32) for name in cls._fields))


@dataclass(frozen=True)
class Evidence:
    """How far to trust a hypergradient; a field is ``None`` where it does not apply.

    Parameters
    ----------
    inner_residual : ``()``; norm of the full inner gradient at the returned params over its norm
        at the start of the run. 0 is solved, 1 is no progress, above 1 is worse than the start.
    linear_residual : ``()``; ``|H v - b| / |b|`` of the adjoint system (implicit estimators).
    standard_error : like ``hyper``; standard error of ``grad`` over the solver's randomness.
    bias : like ``hyper``; estimated systematic error of ``grad``.
    counts : :class:`Counts` of oracle calls.
    """

    inner_residual: FloatTree = None
    linear_residual: FloatTree = None
    standard_error: FloatTree = None
    bias: FloatTree = None
    counts: Counts = Counts()


@dataclass(frozen=True)
class Estimate:
    """``value`` of the outer loss, its hypergradient ``grad`` (like ``hyper``), ``evidence``."""

    value: Scalars
    grad: FloatTree
    evidence: Evidence


@dataclass(frozen=True)
class InnerState:
    """The state of the lower level, all that an estimator carries from call to call.

    Parameters
    ----------
    params : the inner variable.
    solver_state : the solver's (momentum, permutation, step count).
    memory : the estimator's (tangents, adjoint, tables), so that warm starts are not special.
    reference : ``()``; norm of the inner gradient at the first start, 0 until measured.
    """

    params: Params
    solver_state: PyTree
    memory: PyTree = None
    reference: Scalars = 0.0  # pyright: ignore[reportAssignmentType]


for _node in (Evidence, Estimate, InnerState):
    register_node(_node)


def init_inner_state(params: Params, solver_state: PyTree, memory: PyTree = None) -> InnerState:
    """Return an :class:`InnerState` whose reference is still to be measured."""
    return InnerState(params, solver_state, memory, jnp.zeros((), dtype(params)))
