"""SGD that walks through shuffled epochs: batches that depend on one another.

Each epoch visits ``M`` batches once in a fresh random order. Within an epoch the noises of two
steps have covariance ``-C / (M - 1)``, so that the sum over an epoch vanishes: along flat
directions far less noise is left than formulas for independent batches say (up to 72 times less;
at epoch ends another two orders). Additive noise, quadratic loss, no momentum.

Where the Hessians of the examples differ the mean moves too: :mod:`bilevel.noise.shuffled`, which
holds for momentum and for iterates and derivative together.

Source: derived for this project, after Kuehn and Rosenow, "Correlated noise in epoch-based SGD".
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.noise.quadratic.heavy_ball import noise_in_eigenmodes
from bilevel.utils import require_positive_int, require_positive_scalars


def covariance(
    hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, batches: int
) -> Array:
    r"""Return the stationary covariance ``[d, d]``, averaged over the position within an epoch.

    In the eigenbasis, with ``a = 1 - lam k``: ``lam^2 C_ij / (1 - a_i a_j)
    [1 - (s(a_i) + s(a_j)) / (M (M-1))]``, ``s(a) = sum_{r<M} (M - r) a^r`` over ``r >= 1``. Flat
    limit ``lam^2 C (M+1) / 6``; the crossover to independent batches is at ``k = 3/(lam (M+1))``.

    Parameters
    ----------
    hessian : ``K [d, d]``, positive definite.
    noise : ``C [d, d]``, covariance of one batch's gradient over the ``M`` batches.
    step_size : below ``2 / k_max``.
    batches : ``M``, batches per epoch, at least 2.

    Raises
    ------
    ValueError : a single batch per epoch (that is gradient descent, without noise), a singular or
        indefinite Hessian, a step size beyond the limit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> K, C = 0.02 * jnp.eye(1), jnp.eye(1)
    >>> round(float(noise.epochs.covariance(K, C, 0.1, 10)[0, 0]), 4)
    0.0183
    >>> round(float(noise.steady_state.covariance(K, C, 0.1)[0, 0]), 3)
    2.503
    """
    vectors, x, scaled = _setting("epochs.covariance", hessian, noise, step_size, batches)
    lags = jnp.arange(1, batches, dtype=x.dtype)
    fallen = -_power_less_one(x, lags)  # 1 - a^r: all terms positive, nothing cancels
    lost = (batches - lags) @ fallen / (batches * (batches - 1))
    decay = x[:, None] + x[None, :] - x[:, None] * x[None, :]  # 1 - a_i a_j
    return vectors @ (scaled * (lost[:, None] + lost[None, :]) / decay) @ vectors.T


def end_covariance(
    hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, batches: int
) -> Array:
    r"""Return the stationary covariance ``[d, d]`` at the ends of epochs, the place to read.

    ``lam^2 C_ij (M s2 - s1_i s1_j) / ((M-1) (1 - (a_i a_j)^M))`` with ``s1 = sum_{u<M} a^u``,
    ``s2 = sum_{u<M} (a_i a_j)^u``. Arguments and refusals as for :func:`covariance`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> S = noise.epochs.end_covariance(0.02 * jnp.eye(1), jnp.eye(1), 0.1, 10)
    >>> f"{float(S[0, 0]):.3g}"
    '9.19e-05'
    """
    vectors, x, scaled = _setting("epochs.end_covariance", hessian, noise, step_size, batches)
    powers = _power_less_one(x, jnp.arange(batches, dtype=x.dtype))
    centred = powers - powers.mean(0)
    fresh = batches / (batches - 1) * jnp.einsum("ui,uj->ij", centred, centred)
    whole = _power_less_one(x, jnp.asarray([batches], x.dtype))[0]
    decay = -(whole[:, None] + whole[None, :] + whole[:, None] * whole[None, :])
    return vectors @ (scaled * fresh / decay) @ vectors.T


def _setting(
    owner: str, hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, batches: int
) -> tuple[Array, Array, Array]:
    """Return ``(U, lam k, lam^2 U^T C U)``."""
    require_positive_int(owner, "batches", batches)
    if batches < 2:
        raise ValueError(
            f"{owner}: an epoch needs at least 2 batches, got {batches}: one batch is the full "
            "gradient, and has no noise."
        )
    k, vectors, rotated, _ = noise_in_eigenmodes(owner, hessian, noise, 0.0)
    require_positive_scalars(owner, step_size=step_size)
    checks.below_limit(owner, step_size, 2 / k[-1], "the step size")
    return vectors, step_size * k, step_size**2 * rotated


def _power_less_one(x: Array, exponents: Array) -> Array:
    """Return ``(1 - x)^r - 1``, ``[m, d]``, for ``x [d]`` in (0, 2), accurate at small ``x``."""
    r = exponents[:, None]
    small = jnp.expm1(r * jnp.log1p(-jnp.minimum(x, 0.5)))
    return jnp.where(x < 0.5, small, (1 - x) ** r - 1)
