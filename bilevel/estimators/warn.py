"""What is said of an estimate whose evidence is bad: how bad, why, and what would help."""

import math
import warnings

from jax import Array

from bilevel.core import Estimate
from bilevel.utils import PyTree, norm


class EvidenceWarning(UserWarning):
    """A hypergradient whose known relative error is too large to be used."""


def warn_of_error(estimate: Estimate, error: Array, max_error: float, *, wait: bool) -> None:
    """Warn if the relative error is above ``max_error``; without ``wait`` only if it is there."""
    if not wait and not getattr(error, "is_ready", lambda: False)():
        return
    if float(error) > max_error:
        warnings.warn(describe_error(estimate), EvidenceWarning, stacklevel=3)


def describe_error(estimate: Estimate) -> str:
    """Return a sentence each for the number, the cause and the cure."""
    error = float(estimate.relative_error)
    size = "worthless" if math.isinf(error) else f"known to be wrong by about {100 * error:.0f} %"
    return f"This hypergradient is {size}: {_cause(estimate)}"


def _cause(estimate: Estimate) -> str:
    """The largest part of the error, and what would make it smaller."""
    evidence = estimate.evidence
    if not math.isfinite(float(norm(estimate.grad))):
        return "it is not finite. Look for the first loss or derivative that is not."
    noise = _size(evidence.standard_error)
    wrong = max(_size(evidence.bias), _float(evidence.residual_error) * float(norm(estimate.grad)))
    if noise > wrong and noise > 0:
        return (
            "the noise of the inner solver hides it (standard error "
            f"{noise:.2g}, size {float(norm(estimate.grad)):.2g}). Use more steps to average over, "
            "a smaller step size, or more replicas."
        )
    if _float(evidence.derivative_residual) > 1:
        return (
            "derivatives grow along the inner steps (derivative residual "
            f"{_float(evidence.derivative_residual):.2g}). Differentiate the last steps only "
            "(truncate), take a smaller step size, or use PES."
        )
    if evidence.derivative_residual is not None:
        return (
            "the derivative of the iterates has not converged "
            f"(derivative residual {_float(evidence.derivative_residual):.2g}). Take more inner "
            "steps, a larger step size or an implicit estimator; directions of small inner "
            "curvature need most."
        )
    return (
        f"inner residual {_float(evidence.inner_residual):.2g}, linear residual "
        f"{_float(evidence.linear_residual):.2g}. The inner problem or the adjoint system is not "
        "solved well enough where the inner curvature is smallest: use smaller tolerances, more "
        "steps, scaled columns or a larger penalty."
    )


def _size(tree: PyTree) -> float:
    return 0.0 if tree is None else float(norm(tree))


def _float(x: PyTree) -> float:
    return 0.0 if x is None else float(x)
