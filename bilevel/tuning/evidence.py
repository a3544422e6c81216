"""Whether the last hypergradient of a run is bad, or only small: at an optimum it is mostly error.

An error is harmless that is small beside the largest hypergradient of the run that is known to be
good: the descent from there was right, and what is left of the gradient is within its error.
"""

import math
from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike

from bilevel.core import Estimate
from bilevel.utils import norm


def is_unreliable(
    estimate: Estimate, history: Mapping[str, ArrayLike], max_error: float | None
) -> bool:
    """Return whether the error is above ``max_error``, and not small beside the largest."""
    if max_error is None or not float(estimate.relative_error) > max_error:
        return False
    largest = find_largest_known(history, max_error)
    return not (largest > 0 and absolute_error(estimate) <= max_error * largest)


def absolute_error(estimate: Estimate) -> float:
    """Return what is known of ``|grad - exact|``, from ``|grad|`` and the parts of its error."""
    evidence, size = estimate.evidence, float(norm(estimate.grad))
    noise = 0.0 if evidence.known_noise is None else float(norm(evidence.known_noise))
    bias = 0.0 if evidence.bias is None else float(norm(evidence.bias))
    share = evidence.residual_error
    alone = share is None and evidence.bias is None and noise == 0
    share = float(estimate.relative_error if alone else share or 0.0)
    # Errors are as good as orthogonal to what they add to: |grad|^2 = |exact|^2 (1 + share^2).
    wrong = size * (1 if math.isinf(share) else share / math.hypot(1, share))
    return math.hypot(wrong, bias, noise)


def find_largest_known(history: Mapping[str, ArrayLike], most: float | None) -> float:
    """Return the largest norm of hypergradients with an error of at most ``most``; 0 for none."""
    if "relative_error" not in history:
        return 0.0
    error, size = (np.asarray(history[name], float) for name in ("relative_error", "grad_norm"))
    good = np.isfinite(size) & (error <= (np.inf if most is None else most))
    return float(np.max(size[good] / np.hypot(1, error[good]), initial=0.0))
