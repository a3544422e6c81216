"""What is said of an estimate whose evidence is bad: how bad, why, and what would help."""

import math
import warnings
from collections.abc import Callable

from jax import Array

from bilevel.core import Estimate
from bilevel.utils import PyTree, norm


class EvidenceWarning(UserWarning):
    """A hypergradient whose known relative error is too large to be used.

    Examples
    --------
    >>> import warnings, bilevel as bl
    >>> warnings.simplefilter("error", bl.EvidenceWarning)  # stop instead of going on
    >>> warnings.simplefilter("default", bl.EvidenceWarning)
    """


def warn_of_error(
    estimate: Estimate,
    error: Array,
    max_error: float,
    *,
    wait: bool,
    find: Callable[[], str | None],
) -> None:
    """Warn if the relative error is above ``max_error``; without ``wait`` only if it is there.

    ``find`` says what was not finite first, and is asked only where something is not.
    """
    if not wait and not getattr(error, "is_ready", lambda: False)():
        return
    if float(error) > max_error or not math.isfinite(float(estimate.value)):
        warnings.warn(describe_error(estimate, find), EvidenceWarning, stacklevel=3)


def describe_error(estimate: Estimate, find: Callable[[], str | None] | None = None) -> str:
    """Return a sentence each for the number, the cause and the cure."""
    error = float(estimate.relative_error)
    useless = not math.isfinite(error) or not math.isfinite(float(estimate.value))
    size = "worthless" if useless else f"known to be wrong by about {100 * error:.0f} %"
    return f"This hypergradient is {size}: {_cause(estimate, find)}"


def _describe_nonfinite(estimate: Estimate, find: Callable[[], str | None] | None) -> str | None:
    """Return where the first number that is not finite arose, or what remains if no part has it."""
    evidence = estimate.evidence
    numbers = {"it": estimate.grad, "its value": estimate.value} | {
        f"its {name.replace('_', ' ')}": getattr(evidence, name)
        for name in ("inner_residual", "linear_residual", "derivative_residual")
    }
    bad = [name for name, number in numbers.items() if not math.isfinite(_size(number))]
    if not bad:
        return None
    if find is not None and (found := find()):
        return f"{bad[0]} is not finite: {found}"
    if "its linear residual" in bad:
        return (
            f"{bad[0]} is not finite: the inner Hessian is indefinite, or singular in a direction "
            "that the outer loss depends on, so that no derivative of a minimiser is defined. "
            "Solve the inner problem further, add a penalty, or drop params that only the outer "
            "loss uses."
        )
    if "its inner residual" in bad:
        return (
            f"{bad[0]} is not finite: the inner iterates grew until they overflowed. Use a smaller "
            "step size, or a larger batch."
        )
    if "it" not in bad:
        return None
    return (
        "it is not finite, though every loss, gradient and step is: the product of the derivatives "
        "of all steps overflows, because each stretches. Use fewer steps, Reverse(truncate=), a "
        "smaller step size, or PES."
    )


def _cause(estimate: Estimate, find: Callable[[], str | None] | None) -> str:
    """Return the largest part of the error, and what would make it smaller."""
    evidence = estimate.evidence
    if (text := _describe_nonfinite(estimate, find)) is not None:
        return text
    noise = _size(evidence.known_noise)
    wrong = max(_size(evidence.bias), _float(evidence.residual_error) * float(norm(estimate.grad)))
    if math.isinf(noise):
        return (
            "no standard error is known. The theory of the noise holds well below the mean-square "
            "limit of the step size: use a smaller step size or larger batches, or replicas."
        )
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
    if evidence.linear_residual is None:
        return (
            "its derivative has not converged, or this run of it is mostly noise (inner residual "
            f"{_float(evidence.inner_residual):.2g}). Take more inner steps, a smaller step size "
            "if they do not settle, or the mean of copies: Replicated."
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
