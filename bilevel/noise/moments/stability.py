r"""How large a step may be, and how fast the start is forgotten: exactly, in mean square.

With ``N(P) = H P H + p (K(P) - H P H)`` plain SGD maps second moments by the self-adjoint, positive

    T_eta = I - eta (H . + . H) + eta^2 N

so second moments stay bounded if and only if ``eta < eta* = 1 / lambda_max(N, H . + . H)``, and
they contract by ``lambda_max(T_eta)`` per step. The derivative of the iterates has the same random
factors: *it is stable exactly where the iterates are*. Mulayoff and Michaeli, COLT 2024, for the
limit; with a penalty the mean ``H`` is ``H + Lam`` and ``K(P) - H P H`` stays that of the rows.
For a dense Hessian per example see :mod:`bilevel.noise.minibatch`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from bilevel.linear import Eigenvalue, largest_on_matrices
from bilevel.noise import nesterov_momentum
from bilevel.noise.moments import feedback
from bilevel.utils import require_momentum, require_positive_scalars


def step_limit(
    process: feedback.Multiplicative,
    momentum: float | Array = 0.0,
    steps: int = 60,
    nesterov: bool = False,
) -> Eigenvalue:
    r"""Return the exact mean-square limit ``eta*`` of the step size of SGD, with any momentum.

    ``1 / lambda_max`` of ``(Q + p (K - H . H))`` against ``(1 - mu)(H . + . H)``, where ``Q_jl =
    (1 - mu)/(1 + mu) h_j h_l - mu/(1 - mu^2) (h_j - h_l)^2`` in the eigenbasis (``H . H`` without
    momentum). By ``steps`` Lanczos products, O(m n^2) each: the value is an upper bound, too large
    by about ``error`` at most, so ``value - error`` is the cautious number. With ``nesterov`` it is
    where :func:`bilevel.noise.feedback.strength` first reaches 1, at a hundred times the cost.

    Raises
    ------
    ValueError : an indefinite or singular Hessian, momentum outside [0, 1).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import LeastSquares, stability
    >>> process = LeastSquares.from_data(jnp.array([[1.0], [2.0]]), jnp.ones(2), batch_size=1)
    >>> round(float(stability.step_limit(process).value), 4)  # 2 2.5 / 8.5
    0.5882
    """
    mu = require_momentum("stability.step_limit", momentum)
    h, U = jnp.linalg.eigh(feedback.require_curvature("stability.step_limit", process))
    hj, hl = h[:, None], h[None, :]

    def noise(P: Array) -> Array:
        return process.factor * U.T @ process.fluctuation(U @ P @ U.T) @ U

    if nesterov:
        return _nesterov_limit(h, noise, mu, steps)
    root = jnp.sqrt((1 - mu) * (hj + hl))
    mean = (1 - mu) / (1 + mu) * hj * hl - mu / (1 - mu**2) * (hj - hl) ** 2

    def product(Y: Array) -> Array:
        P = Y / root
        return (mean * P + noise(P)) / root

    found = largest_on_matrices(product, len(h), steps, h.dtype)
    return Eigenvalue(1 / found.value, found.error / found.value**2)


def _nesterov_limit(
    h: Array, noise: Callable[[Array], Array], mu: float | Array, steps: int
) -> Eigenvalue:
    """Return where ``P -> kappa o noise(P)`` has the eigenvalue 1, in the eigenbasis."""

    def feedback_at(step_size: Array) -> Eigenvalue:
        root = step_size / jnp.sqrt(nesterov_momentum.noise_divisor(step_size * h, mu))
        return largest_on_matrices(lambda Y: root * noise(root * Y), len(h), steps, h.dtype)

    edge = nesterov_momentum.curvature_limit(mu) / h[-1]
    limit = nesterov_momentum.first_crossing(lambda step: feedback_at(step).value, edge)
    # kappa grows at least like the step size, so that relative errors do not grow.
    at = feedback_at(limit)
    return Eigenvalue(limit, limit * at.error / at.value)


def contraction(
    process: feedback.Multiplicative, step_size: float | Array, steps: int = 100
) -> Eigenvalue:
    r"""Return factor per step of plain SGD by which second moments above their floor fall, at last.

    ``lambda_max(T_eta)`` by ``steps`` Lanczos products, O(m n^2) each; a lower bound, by about
    ``error`` at most. Above 1: second moments grow. The derivative shares the factor; where a
    penalty couples it to the iterates it lags behind by a polynomial in k.

    Raises
    ------
    ValueError : an indefinite or singular Hessian.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import LeastSquares, stability
    >>> process = LeastSquares.from_data(jnp.array([[1.0], [2.0]]), jnp.ones(2), batch_size=1)
    >>> round(float(stability.contraction(process, 0.2).value), 4)  # 1 - 0.2 5 + 0.04 8.5
    0.34
    """
    require_positive_scalars("stability.contraction", step_size=step_size)
    H = feedback.require_curvature("stability.contraction", process)
    M = jnp.eye(len(H), dtype=H.dtype) - step_size * H

    def product(P: Array) -> Array:
        return M @ P @ M + process.factor * step_size**2 * process.fluctuation(P)

    return largest_on_matrices(product, len(H), steps, H.dtype)
