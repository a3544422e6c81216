"""The mean-square limit of the step size of a method, in NumPy: see :mod:`bilevel.noise.stability`.

Of plain SGD it is one eigenvalue; with momentum it is where the noise that feeds back reaches the
factor 1.
"""

from collections.abc import Callable

import numpy as np

from bilevel.linear import largest_without_compiling
from bilevel.noise import nesterov_momentum
from bilevel.planning.scheme import Scheme
from bilevel.planning.stationary import Noise, StepResponse

_ACCURACY = 1e-4  # of the limit, of which no plan uses more than half


def find_step_limit(noise: Noise, scheme: Scheme, factor: float) -> float:
    """Return the largest step size below which second moments are bounded."""
    if scheme.momentum is None:
        return _solve(noise, factor)
    mu = scheme.momentum
    edge = nesterov_momentum.curvature_limit(mu) if scheme.nesterov else 2 * (1 + mu)

    def stable(step_size: float) -> bool:
        root = np.sqrt(StepResponse(scheme, noise.h, step_size).kappa).ravel()
        return _largest(lambda v: factor * root * (noise.feedback @ (root * v)), noise) < 1

    low = high = float(edge / noise.h[-1]) * (1 - _ACCURACY)
    while not stable(low):
        low, high = low / 2, low
    while high - low > _ACCURACY * high:
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def _solve(noise: Noise, factor: float) -> float:
    both = (noise.h[:, None] + noise.h[None, :]).ravel()
    root, mean = np.sqrt(both), np.multiply.outer(noise.h, noise.h).ravel() / both

    def product(v: np.ndarray) -> np.ndarray:
        return mean * v + factor * (noise.feedback @ (v / root)) / root

    return 1 / _largest(product, noise)


def _largest(product: Callable[[np.ndarray], np.ndarray], noise: Noise) -> float:
    """Return the largest eigenvalue of a map of positive semidefinite matrices to such.

    Its leading eigenvector is one, too (Krein and Rutman): of the identity no share is missed.
    """
    return largest_without_compiling(product, np.eye(len(noise.h)).ravel())
