"""The average of the last iterates of SGD: the exact covariance for any window."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.noise.quadratic.heavy_ball import noise_in_eigenmodes, stationary_blocks, transfer_maps
from bilevel.utils import require_positive_int, require_positive_scalars


def covariance(
    hessian: ArrayLike,
    noise: ArrayLike,
    step_size: float | Array,
    window: int,
    momentum: float | Array = 0.0,
) -> Array:
    r"""Return the covariance ``[d, d]`` of the mean of ``window`` consecutive stationary iterates.

    Exact.

    ``(1/n^2) sum_{s,t} Cov(w_s, w_t)``, summed by powers of a 6 x 6 block per mode, without
    cancellation. As ``n`` grows it tends to :func:`limit`; that needs ``n >> 1 / (lam k_min)``.
    Off quadratic losses averaging removes the fluctuation, not the shift of the mean.

    Parameters
    ----------
    hessian, noise : ``K``, ``C``, ``[d, d]``.
    step_size, momentum : as for ``noise.steady_state.covariance``, a scalar step.
    window : ``n``, the number of iterates averaged.

    Raises
    ------
    ValueError : a singular or indefinite Hessian, a step size beyond ``2 (1 + mu) / k_max``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> K = C = jnp.eye(1)
    >>> [round(float(noise.averaging.covariance(K, C, 0.5, n)[0, 0]), 4) for n in (1, 2, 100)]
    [0.3333, 0.25, 0.0099]
    """
    owner = "averaging.covariance"
    require_positive_int(owner, "window", window)
    k, vectors, rotated, mu = noise_in_eigenmodes(owner, hessian, noise, momentum)
    require_positive_scalars(owner, step_size=step_size)
    checks.below_limit(owner, step_size, 2 * (1 + mu) / k[-1], "the step size")
    blocks = stationary_blocks(k, rotated, step_size, mu)
    weights = weighted_powers(transfer_maps(k, step_size, mu), window)
    later = jnp.einsum("iac,ijcb->ijab", weights, blocks)[..., 0, 0]
    # E[w_s w_t] counts lag 0 once, but both sums over later iterates hold it.
    total = later + later.T - window * blocks[..., 0, 0]
    return vectors @ (total / window**2) @ vectors.T


def limit(hessian: ArrayLike, noise: ArrayLike, window: int) -> Array:
    """Return the leading law ``K^-1 C K^-1 / n``, ``[d, d]``.

    Independent of step size and momentum.

    Raises
    ------
    ValueError : a singular or indefinite Hessian.
    """
    owner = "averaging.limit"
    require_positive_int(owner, "window", window)
    k, vectors, rotated, _ = noise_in_eigenmodes(owner, hessian, noise, 0.0)
    return vectors @ (rotated / (k[:, None] * k[None, :] * window)) @ vectors.T


def weighted_powers(maps: Array, window: int) -> Array:
    """Return ``sum_{j<n} (n - j) A^j`` of each ``A [..., k, k]``.

    A corner of a power of a block.
    """
    k = maps.shape[-1]
    one = jnp.broadcast_to(jnp.eye(k, dtype=maps.dtype), maps.shape)
    zero = jnp.zeros_like(maps)
    block = jnp.block([[maps, one, zero], [zero, one, one], [zero, zero, one]])
    return jnp.linalg.matrix_power(block, window + 1)[..., :k, 2 * k :]
