"""What :func:`bilevel.plan` says when theory has no answer."""

import numpy as np


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
