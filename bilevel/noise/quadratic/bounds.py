r"""What the theorem on the derivatives of SGD promises, to be held against the exact moments.

Inexact SGD ``w_{k+1} = w_k - eta_k (grad g(w_k; xi_{k+1}) + e_{k+1})`` with a mean gradient that is
mu-strongly monotone, ``grad g(.; xi)`` L-Lipschitz, ``E |grad g(w*; xi)|^2 <= sigma^2``,
``E |e_{k+1}|^2 <= B_k^2`` and ``eta_k <= mu / (4 L^2)`` obeys, ``D_k^2 = E |w_k - w*|^2``,

    D_{k+1}^2 <= (1 - mu eta_k) D_k^2 + 2 eta_k^2 (B_k^2 + 2 sigma^2) + 2 eta_k B_k D_k

The derivative of SGD is such an iteration, with ``B_k <= M (1 + C) sqrt(E |x_k - x*|^2)`` for
M-Lipschitz second derivatives and derivatives bounded by C; on least squares ``M = B = 0``.

Source: Iutzeler, Pauwels, Vaiter, "Derivatives of stochastic gradient descent in parametric
optimization", NeurIPS 2024, Theorem 2.2; constants that its poster leaves illegible are those of
the proof above.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils import is_traced, require_positive_scalars


def step_cap(strong_convexity: float | Array, smoothness: float | Array) -> Array:
    """Return the largest step size of the theorem, ``mu / (4 L^2)``; ``()``."""
    require_positive_scalars(
        "bounds.step_cap", strong_convexity=strong_convexity, smoothness=smoothness
    )
    return jnp.asarray(strong_convexity / (4 * smoothness**2))


def floor(
    step_size: float | Array,
    strong_convexity: float | Array,
    noise: float | Array,
    hessian_lipschitz: float | Array = 0.0,
    size: float | Array = 0.0,
) -> Array:
    """Return ``limsup E |D_k - D*|^2 <= (4 sigma^2 eta / mu) (1 + 3 M (1 + C) / mu)^2``; ``()``.

    Parameters
    ----------
    step_size : the limit of the step sizes.
    strong_convexity, noise : ``mu``, ``sigma^2``.
    hessian_lipschitz, size : ``M``, ``C``; both 0 on least squares.

    Examples
    --------
    >>> from bilevel import noise
    >>> round(float(noise.bounds.floor(0.01, 0.5, 2.0)), 4)
    0.16
    """
    require_positive_scalars("bounds.floor", step_size=step_size, strong_convexity=strong_convexity)
    spread = 4 * noise * step_size / strong_convexity
    return jnp.asarray(spread * (1 + 3 * hessian_lipschitz * (1 + size) / strong_convexity) ** 2)


def rate_constant(
    strong_convexity: float | Array,
    smoothness: float | Array,
    noise: float | Array,
    start: float | Array,
    error: float | Array = 0.0,
) -> Array:
    r"""Return ``V`` with ``E |w_k - w*|^2 <= V / (k + 8 kappa^2)``: 1/k, without a logarithm.

    For the step ``eta_k = 2 / (mu (k + k0))``, ``k0 = 8 kappa^2``, and errors that fall as the
    iterates do, ``B_k^2 <= b^2 / (k + k0)``. With ``t = k + k0``, ``D_k^2 <= V / t`` in the
    recursion at the top leaves ``D_{k+1}^2 <= V / (t + 1)`` as soon as

        V >= 8 (b^2 + 2 sigma^2) / mu^2 + 4 b sqrt(V) / mu,

    of which the smallest solution is taken, or ``k0 D_0^2`` where that is larger. Derived here: the
    theorem states ``O(log(k)^2 / k)`` for the derivative. For the iterates ``b = 0``, and their
    ``V`` gives ``b = M (1 + C) sqrt(V)`` for the derivative.

    Parameters
    ----------
    strong_convexity, smoothness, noise : ``mu``, ``L``, ``sigma^2``.
    start : ``D_0^2``, the squared error at the start.
    error : ``b``; 0 for SGD itself.

    Raises
    ------
    ValueError : a strong convexity or smoothness that is not positive.

    Examples
    --------
    >>> from bilevel import noise
    >>> round(float(noise.bounds.rate_constant(1.0, 2.0, noise=0.5, start=0.0)), 4)
    8.0
    >>> round(float(noise.bounds.rate_constant(1.0, 2.0, noise=0.5, start=1.0)), 4)
    32.0
    """
    require_positive_scalars(
        "bounds.rate_constant", strong_convexity=strong_convexity, smoothness=smoothness
    )
    slope = 2 * jnp.asarray(error) / strong_convexity
    root = slope + jnp.sqrt(slope**2 + 8 * (error**2 + 2 * noise) / strong_convexity**2)
    return jnp.maximum(8 * (smoothness / strong_convexity) ** 2 * jnp.asarray(start), root**2)


def path(
    step_sizes: ArrayLike,
    strong_convexity: float | Array,
    smoothness: float | Array,
    noise: float | Array,
    start: ArrayLike,
    errors: ArrayLike = 0.0,
) -> Array:
    r"""Return the recursion at the top as an equality.

    Bounds of ``E |w_k - w*|^2``, ``k = 1 .. K``.

    Parameters
    ----------
    step_sizes : ``[K]``.
    strong_convexity, smoothness, noise : ``mu``, ``L``, ``sigma^2``.
    start : ``E |w_0 - w*|^2``.
    errors : ``B_k``, ``()`` or ``[K]``; 0 for SGD itself.

    Raises
    ------
    ValueError : a step size beyond :func:`step_cap`, where nothing is promised.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> noise.bounds.path(jnp.full(2, 0.1), 1.0, 1.0, 0.0, start=1.0).round(4)
    Array([0.9 , 0.81], dtype=float32)
    """
    cap = step_cap(strong_convexity, smoothness)
    eta = jnp.asarray(step_sizes, float)
    if not is_traced((eta, cap)) and np.asarray(eta).max() > float(cap) * (1 + 1e-6):
        raise ValueError(
            f"bounds.path: the theorem holds for step sizes up to mu / (4 L^2) = {float(cap):.4g}, "
            f"got {np.asarray(eta).max():.4g}. Beyond it use noise.moments, which is exact."
        )
    errors = jnp.broadcast_to(jnp.asarray(errors, eta.dtype), eta.shape)

    def body(square: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        eta, error = at
        kept = (1 - strong_convexity * eta) * square + 2 * eta * error * jnp.sqrt(square)
        square = kept + 2 * eta**2 * (error**2 + 2 * noise)
        return square, square

    return jax.lax.scan(body, jnp.asarray(start, eta.dtype), (eta, errors))[1]
