"""What :func:`bilevel.plan` says when theory has no answer."""

import math
from collections.abc import Sequence

import numpy as np

from bilevel.planning.search import Candidate


def require_solved(decrease: float, value: float) -> None:
    """Refuse an inner problem that Newton's method did not solve."""
    if not decrease <= 1e-12 * (1 + abs(value)):
        raise ValueError(
            "bl.plan could not solve the inner problem: Newton's method would still gain "
            f"{decrease:.3g}. Is the inner loss bounded below and twice differentiable?"
        )


def require_near(delay: float) -> None:
    """Refuse params from which gradient descent does not reach the quadratic region."""
    if not np.isfinite(delay):
        raise ValueError(
            "bl.plan: gradient descent from params does not come near the solution, where the "
            "loss is quadratic and theory holds. Start from better params, for example those of "
            "bl.solve."
        )


def require_quadratic(declared: bool, change: float, n: int, m: int, p: int) -> None:
    """Refuse a large inner loss with third derivatives: the stationary mean is then not known."""
    if not declared and change > 1e-8:
        raise ValueError(
            f"bl.plan: {n} params, {m} inner examples and {p} hyperparameters are too many for "
            "exact moments, and the inner loss is not quadratic, so that the stationary mean is "
            "off by an amount that cheaper theory does not tell. Measure it: bl.Replicated for the "
            "noise, bl.Richardson for the bias; or plan on a part of the data."
        )


def require_separated(value: float, error: float) -> None:
    """Refuse a Hessian that is not certain to be positive definite."""
    if not value > 2 * error:
        raise ValueError(
            "bl.plan: the smallest curvature of the inner loss at the solution is "
            f"{value:.3g} +- {error:.2g} by Lanczos: singular, indefinite, or too close to tell. "
            "Add a penalty, drop dependent features, or measure the noise with bl.Replicated."
        )


def require_solved_linear(residual: float) -> None:
    """Refuse influences from systems that conjugate gradients did not solve."""
    if not residual <= 1e-4:
        raise ValueError(
            "bl.plan: conjugate gradients leave a relative residual of "
            f"{residual:.2g} with the inner Hessian: it is too ill-conditioned. Scale the features "
            "or add a penalty."
        )


def require_tolerance(tolerance: float) -> None:
    """Refuse a relative error that means nothing."""
    if not 0 < tolerance < 1:
        raise ValueError(
            f"bl.plan: tolerance must lie between 0 and 1, got {tolerance}: it is the root mean "
            "square error of the hypergradient over its size, and 0 instead of it is off by 1."
        )


def require_slope(exact: np.ndarray, parts: float) -> None:
    """Refuse a hypergradient that is 0, so that no error is small beside it."""
    if not np.linalg.norm(exact) > 1e-9 * parts:
        raise ValueError(
            "bl.plan: the hypergradient at the solution is 0 to rounding, so that a relative error "
            "is not defined. hyper is optimal already: plan where a run begins, not where it ends."
        )


def require_found(
    rows: Sequence[Candidate], best: Candidate, tolerance: float, budget: float, max_steps: int
) -> None:
    """Refuse a tolerance that no candidate meets, or none within the budget."""
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
