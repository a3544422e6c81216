r"""Nesterov's momentum, ``v <- mu v + g``, ``w <- w - eta (g + mu v)``: how it responds to noise.

Eliminating the velocity, ``w_{t+1} = (1 + mu) w_t - mu w_{t-1} - eta [(1 + mu) g_t - mu g_{t-1}]``.
Along an eigenvector of curvature k, with ``a = eta k``, it is the process with the polynomial
``z^2 - (1 + mu)(1 - a) z + mu (1 - a)`` and noise ``(1 + mu) xi_t - mu xi_{t-1}``. The mean
converges for ``a < 2 (1 + mu) / (1 + 2 mu)`` (Jury); the stationary covariance of two coordinates
is that of their noise over a divisor, the quotient of two polynomials of degree 2.

Derived for this project from the stationary equations of the two processes; the heavy ball's
divisor is that of Liu, Ziyin, Ueda, ICML 2021 (:mod:`bilevel.noise.steady_state`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

_SHARES = 64  # of the interval, looked at before the crossing is located: it may have several
_HALVINGS = 60


def curvature_limit(momentum: float | Array) -> float | Array:
    """Return the limit of ``eta k``, ``2 (1 + mu) / (1 + 2 mu)``, below which the mean converges.

    Examples
    --------
    >>> from bilevel.noise.nesterov_momentum import curvature_limit
    >>> curvature_limit(0.5)
    1.5
    """
    return 2 * (1 + momentum) / (1 + 2 * momentum)


def noise_divisor(a: Array, momentum: float | Array) -> Array:
    r"""Return the divisor ``[d, d]`` of the covariance equation, for ``a = eta k``, ``[d]``.

    ``[e N - mu (1+mu) ((1-mu) s + 2 mu r)] / N`` with ``s = a_i + a_j``, ``r = a_i a_j``,
    ``e = s - r`` and ``N = 1 - mu^2 + mu (1+mu)^2 s - mu^2 (1+2mu) e``: no terms that cancel along
    flat directions.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise.nesterov_momentum import noise_divisor
    >>> noise_divisor(jnp.array([0.5]), 0.0)  # without momentum 2 a - a^2
    Array([[0.75]], dtype=float32)
    """
    mu, s, r = momentum, a[:, None] + a[None, :], a[:, None] * a[None, :]
    e = s - r
    numerator = 1 - mu**2 + mu * (1 + mu) ** 2 * s - mu**2 * (1 + 2 * mu) * e
    lost = mu * (1 + mu) * ((1 - mu) * s + 2 * mu * r)
    return (e * numerator - lost) / numerator


def first_crossing(feedback: Callable[[Array], Array], edge: Array) -> Array:
    """Return the smallest step size below ``edge`` at which ``feedback`` is 1, or ``edge``; ``()``.

    ``feedback(step_size)`` is the factor by which minibatch noise feeds itself. It grows with the
    step size for any momentum up to 0.9; above, nothing is known, and 64 places are looked at.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise.nesterov_momentum import first_crossing
    >>> round(float(first_crossing(lambda step: 2 * step, jnp.asarray(3.0))), 5)
    0.5
    """
    shares = edge * jnp.arange(1, _SHARES) / _SHARES
    above = jnp.append(jax.lax.map(feedback, shares) >= 1, True)
    first = jnp.argmax(above)
    low = edge * first / _SHARES

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        over = feedback(middle) >= 1
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, low + edge / _SHARES))
    return high
