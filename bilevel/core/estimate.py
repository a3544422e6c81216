"""What an estimator returns: a value, a hypergradient, and the evidence for it."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.core.error import relative_error, student_quantile
from bilevel.utils import Count, FloatTree, Params, PyTree, Scalars, dtype, register_node

OUTER_ROWS = "noise of the outer rows"  # a name in ``Estimate.unknown``


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
    derivative_residual : ``()``; what an unrolled derivative leaves of the linear equation that
        the derivative of the minimiser satisfies: ``|H D + C| / |C|`` in forward mode, in reverse
        mode the adjoint at the first step over that at the last. 0 is converged, 1 no progress.
    residual_error : ``()``; relative error of ``grad`` that the residuals stand for, to first
        order, by a few products with the inner Hessian at the returned params.
    freedom : ``()``; degrees of freedom of ``standard_error``; ``None`` for a predicted one.
    corrected_error : like ``hyper``; standard error of ``grad - bias`` where it is measured: a bias
        that is estimated run by run has the run's noise in it, and takes it out of ``grad``.
    directions_only : ``standard_error`` is the spread over random directions of one run, and has
        none of the noise of the inner solver in it; static.
    not_measured : what else ``Estimate.unknown`` names; static.
    """

    inner_residual: FloatTree = None
    linear_residual: FloatTree = None
    standard_error: FloatTree = None
    bias: FloatTree = None
    counts: Counts = Counts()
    derivative_residual: FloatTree = None
    residual_error: FloatTree = None
    freedom: PyTree = None
    corrected_error: FloatTree = None
    directions_only: bool = field(default=False, metadata={"static": True})
    not_measured: tuple[str, ...] = field(default=(), metadata={"static": True})

    @property
    def known_noise(self) -> FloatTree:
        """The standard error of ``grad`` less its bias; ``None`` where there is none."""
        return self.standard_error if self.corrected_error is None else self.corrected_error


@dataclass(frozen=True)
class Estimate:
    """``value`` of the outer loss, its hypergradient ``grad`` (like ``hyper``), ``evidence``.

    ``aux``, of a problem with ``has_aux``: the side results ``{"inner": ..., "outer": ...}`` of the
    last inner step and of the outer loss, with the minibatches and keys that they saw.
    """

    value: Scalars
    grad: FloatTree
    evidence: Evidence
    aux: PyTree = None

    @property
    def relative_error(self) -> Scalars:
        """What is known of ``|grad - exact| / |exact|``, ``()``; see :func:`relative_error`."""
        return relative_error(self.grad, self.evidence)

    @property
    def unknown(self) -> tuple[str, ...]:
        """What ``relative_error`` does not contain, because the estimator did not measure it."""
        evidence, missing = self.evidence, []
        if evidence.bias is None and evidence.residual_error is None:
            missing.append("systematic error")
        if evidence.standard_error is None or evidence.directions_only:
            missing.append("noise of the inner solver")
        return (*missing, *evidence.not_measured)

    def interval(self, level: float = 0.95) -> PyTree:
        """Return ``(low, high)`` around each entry of ``grad`` less its bias: a tree of pairs.

        Student's t with ``evidence.freedom`` degrees of freedom, the normal where it is ``None``,
        times the standard error of ``grad``. That of ``grad - bias`` is smaller where each run has
        a bias of its own, but what is left is of second order and far from normal: the interval
        then covers more than ``level``.

        Raises
        ------
        ValueError : no standard error was measured or predicted; a level that is none.

        Examples
        --------
        >>> import jax.numpy as jnp, bilevel as bl
        >>> evidence = bl.Evidence(standard_error=jnp.array(0.5), freedom=jnp.array(4))
        >>> low, high = bl.Estimate(jnp.array(0.0), jnp.array(2.0), evidence).interval()
        >>> f"{low:.3f} .. {high:.3f}"
        '0.612 .. 3.388'
        """
        error, bias = self.evidence.standard_error, self.evidence.bias
        if error is None:
            raise ValueError(
                "estimate.interval: the estimator measured no standard error. Wrap it: "
                "Replicated(estimator, n) measures one, Predicted(estimator) predicts it for SGD."
            )
        width = student_quantile(level, self.evidence.freedom)
        centre = self.grad if bias is None else jax.tree.map(jnp.subtract, self.grad, bias)
        return jax.tree.map(lambda g, e: (g - width * e, g + width * e), centre, error)


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

    @property
    def model_state(self) -> PyTree:
        """The model state of a problem that ``has_state``: what the last step made of it."""
        return getattr(self.solver_state, "model_state", None)


for _node in (Evidence, Estimate, InnerState):
    register_node(_node)


def note_outer_rows(evidence: Evidence, size: int | None) -> Evidence:
    """Return evidence that names the noise of ``size`` outer rows; ``None``: there is none."""
    missing = () if size is None else (OUTER_ROWS,)
    return replace(evidence, not_measured=(*evidence.not_measured, *missing))


def init_inner_state(params: Params, solver_state: PyTree, memory: PyTree = None) -> InnerState:
    """Return an :class:`InnerState` whose reference is still to be measured."""
    return InnerState(params, solver_state, memory, jnp.zeros((), dtype(params)))
