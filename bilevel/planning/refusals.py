"""What :func:`bilevel.plan` says when theory has no answer."""

import math
from collections.abc import Sequence

import numpy as np

from bilevel.planning.search import Candidate


def require_solved(decrease: float, value: float) -> None:
    """Validate that Newton's method solved the inner problem."""
    if not decrease <= 1e-12 * (1 + abs(value)):
        raise ValueError(
            "bl.plan could not solve the inner problem: Newton's method would still gain "
            f"{decrease:.3g}. Is the inner loss bounded below and twice differentiable?"
        )


def require_mean(single: np.ndarray, whole: np.ndarray, size: float) -> None:
    """Validate that the mean over single examples is that of all: SGD descends no other loss.

    ``single`` and ``whole`` are gradients and curvatures, ``size`` what they are sums of.
    """
    off = float(np.abs(single - whole).max())
    if not off <= 1e-6 * size:
        raise ValueError(
            "bl.plan: the inner loss is no mean over the examples of its batch: gradients and "
            "curvatures of single examples at the solution have another mean than those of all "
            f"(they differ by {off / size:.2g} of their size), so that SGD would follow another "
            "loss than the one that is solved here. Take jnp.mean over the batch instead of "
            "jnp.sum, and normalise weights over all data, not within the batch."
        )


def require_near(delay: float) -> None:
    """Validate that gradient descent from params reaches the quadratic region."""
    if not np.isfinite(delay):
        raise ValueError(
            "bl.plan: gradient descent from params does not come near the solution, where the "
            "loss is quadratic and theory holds. Start from better params, for example those of "
            "bl.solve."
        )


def require_small_curved(quadratic: bool, most: int, n: int, m: int, p: int) -> None:
    """Validate that the stationary mean of an inner loss that is not quadratic can be known."""
    if not quadratic and n > most:
        raise ValueError(
            f"bl.plan: {n} params, {m} inner examples and {p} hyperparameters are too many for "
            f"exact moments, and the inner loss is not quadratic, so that the stationary mean is "
            f"off by an amount that takes a Hessian, formed up to {most} params. Measure "
            "it: bl.Replicated for the noise, bl.Richardson for the bias; or plan with fewer."
        )


def require_exact_moments(settings: str, n: int, m: int, p: int) -> None:
    """Validate the method of the route without exact moments; ``settings`` begin with a comma."""
    if "momentum" in settings or "epoch" in settings:
        raise ValueError(
            f"bl.plan: {settings[2:]} needs exact moments (route='dense'), for which {n} params, "
            f"{m} inner examples and {p} hyperparameters are too many. Plan without, or on a part "
            "of the data."
        )


def require_followed(orders: int, fewest: int, size: int, batches: int) -> None:
    """Validate that enough orders of the examples can be followed for moments over epochs."""
    if orders < fewest:
        raise ValueError(
            f"bl.plan: sampling='epoch' follows {fewest} or more orders of the examples, which for "
            f"{size} numbers (params, twice with momentum) and epochs of {batches} steps takes too "
            "long. Leave out the smallest of batch_sizes, or plan on a part of the data."
        )


def require_separated(value: float, error: float) -> None:
    """Validate that a Hessian is certain to be positive definite."""
    if not value > 2 * error:
        raise ValueError(
            "bl.plan: the smallest curvature of the inner loss at the solution is "
            f"{value:.3g} +- {error:.2g} by Lanczos: singular, indefinite, or too close to tell. "
            "Add a penalty, drop dependent features, or measure the noise with bl.Replicated."
        )


def require_solved_linear(residual: float) -> None:
    """Validate that conjugate gradients solved the systems of the influences."""
    if not residual <= 1e-4:
        raise ValueError(
            "bl.plan: conjugate gradients leave a relative residual of "
            f"{residual:.2g} with the inner Hessian: it is too ill-conditioned. Scale the features "
            "or add a penalty."
        )


def require_plan_tolerance(tolerance: float) -> None:
    """Validate that a relative error means something."""
    if not 0 < tolerance < 1:
        raise ValueError(
            f"bl.plan: tolerance must lie between 0 and 1, got {tolerance}: it is the root mean "
            "square error of the hypergradient over its size, and 0 instead of it is off by 1."
        )


def require_slope(exact: np.ndarray, parts: float) -> None:
    """Validate that the hypergradient is not 0, so that an error can be small beside it."""
    if not np.linalg.norm(exact) > 1e-9 * parts:
        raise ValueError(
            "bl.plan: the hypergradient at the solution is 0 to rounding, so that a relative error "
            "is not defined. hyper is optimal already: plan where a run begins, not where it ends."
        )


def require_found(
    rows: Sequence[Candidate], best: Candidate, tolerance: float, budget: float, max_steps: int
) -> None:
    """Validate that a candidate meets the tolerance, and one within the budget."""
    if best.cost == math.inf:
        each = "; ".join(f"batch {row.batch}: {row.verdict}" for row in rows)
        raise ValueError(
            f"bl.plan: no run meets tolerance={tolerance:.3g} with max_steps={max_steps}. {each}. "
            "Ask for less, allow more steps, or use bl.Implicit, which has no noise of its own."
        )
    if best.cost > budget:
        within = tolerance * math.sqrt(best.cost / budget)
        raise ValueError(
            f"bl.plan: tolerance={tolerance:.3g} costs {best.cost:.2g} gradients of single "
            f"examples, more than budget={budget:.2g}. About {within:.2g} is what the budget buys, "
            "as the noise falls with the root of the cost."
        )
