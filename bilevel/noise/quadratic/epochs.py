"""SGD that walks through shuffled epochs: batches that depend on one another.

Each epoch visits ``M`` batches once in a fresh random order. Within an epoch the noises of two
steps have covariance ``-C / (M - 1)``, so that the sum over an epoch vanishes: along flat
directions far less noise is left than formulas for independent batches say (up to 72 times less;
at epoch ends another two orders). Additive noise, quadratic loss, no momentum.

Where the Hessians of the examples differ the mean moves too: :func:`tail_average_shift`.

Source: derived for this project, after Kuehn and Rosenow, "Correlated noise in epoch-based SGD".
"""

import jax
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


def tail_average_shift(
    matrices: ArrayLike, offsets: ArrayLike, step_size: float | Array, batch_size: int
) -> Array:
    r"""Return how far from the solution a long tail average over epochs ends, to first order.

    For ``z' = z - lam mean_batch (C_i z - q_i)``, all examples once an epoch, ``[s]``:

        E z - z* = -lam f / (M (M-1)) C^-1 mean_i (C_i - C) [sum_{j<M-1} (M-1-j) A^j] g_i

    with ``C`` the mean, ``g_i = C_i z* - q_i``, ``A = 1 - lam C``, ``M = n / B``, ``f = (n - B) /
    (B (n - 1))``: within an epoch the examples to come depend on those that were. What is left out
    is smaller by another factor of the step size. Independent batches have no such shift.

    Parameters
    ----------
    matrices, offsets : ``C_i [n, s, s]`` and ``q_i [n, s]``: of the iterates, or of iterates and
        derivative together, as in :class:`bilevel.noise.Affine`.
    step_size : ``lam``, ``()``.
    batch_size : ``B``, a divisor of ``n``.

    Raises
    ------
    ValueError : shapes that do not fit; ``n / B`` that is not a whole number of at least 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> curvatures, slopes = jnp.array([1.0, 3.0])[:, None, None], jnp.array([[1.0], [1.0]])
    >>> noise.epochs.tail_average_shift(curvatures, slopes, 0.1, 1).round(4)  # z* = 1/2
    Array([-0.0125], dtype=float32)
    """
    require_positive_int("epochs.tail_average_shift", "batch_size", batch_size)
    C, q = jnp.asarray(matrices), jnp.asarray(offsets)
    n = len(q)
    if q.ndim != 2 or C.shape != (n, q.shape[1], q.shape[1]):
        raise ValueError(
            "epochs.tail_average_shift: expected matrices [n, s, s] and offsets [n, s], got "
            f"{C.shape} and {q.shape}."
        )
    batches, left = divmod(n, batch_size)
    if left or batches < 2:
        raise ValueError(
            f"epochs.tail_average_shift: an epoch must be two or more whole batches, got {n} "
            f"examples in batches of {batch_size}."
        )
    mean = jnp.mean(C, 0)
    g = C @ jnp.linalg.solve(mean, jnp.mean(q, 0)) - q

    def add_power(sums: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        once, twice = sums  # sum_{j<r} A^j g, and the sum of these up to r
        once = g + once - step_size * once @ mean.T
        return (once, twice + once), None

    (_, sums), _ = jax.lax.scan(add_power, (0 * g, 0 * g), length=batches - 1)
    drift = jnp.mean(jnp.einsum("iab,ib->ia", C - mean, sums), 0)
    fraction = (n - batch_size) / (batch_size * (n - 1))
    return -step_size * fraction / (batches * (batches - 1)) * jnp.linalg.solve(mean, drift)


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
