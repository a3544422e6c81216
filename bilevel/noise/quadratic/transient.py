"""Mean and covariance of SGD on a quadratic at every step, under any schedule.

Exact for additive noise that is independent from step to step; the Hessian may have any sign, as
finitely many steps need no stationary state. Source: the recursion behind the covariance equation
of Liu, Ziyin, Ueda (ICML 2021), ``S <- (I - lam_t K) S (I - lam_t K) + lam_t^2 C`` for plain SGD.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise.quadratic.heavy_ball import noise_input, transfer_maps
from bilevel.utils import (
    require_momentum,
    require_same_size,
    require_semi_definite,
    require_symmetric,
    resolve_renamed,
)


class MeanAndCovariance(NamedTuple):
    """The ``mean [..., d]``, measured from the minimum, and the ``covariance [..., d, d]``."""

    mean: Array
    covariance: Array


def path(
    hessian: ArrayLike,
    noise: ArrayLike,
    step_sizes: ArrayLike,
    momentum: float | Array = 0.0,
    start: MeanAndCovariance | None = None,
) -> MeanAndCovariance:
    r"""Return the mean ``[T+1, d]`` and covariance ``[T+1, d, d]`` of ``w_0, ..., w_T``.

    ``mean <- (I - lam_t K) mean``, ``S <- (I - lam_t K) S (I - lam_t K) + lam_t^2 C``, and with
    momentum the same of the pair of iterate and velocity.

    Parameters
    ----------
    hessian : ``K [d, d]``, symmetric.
    noise : ``C [d, d]``, or ``[T, d, d]`` where it changes (a schedule of batch sizes).
    step_sizes : ``[T]``, one per step, in the order of use.
    momentum : heavy ball, in [0, 1), or ``[T]``; the velocity starts at 0.
    start : moments of ``w_0``; ``None`` is the minimum itself, mean and covariance 0.

    Raises
    ------
    ValueError : step sizes that are not ``[T]``, matrices of different sizes, an indefinite noise.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> steps = 0.5 * jnp.ones(200)
    >>> moments = noise.transient.path(jnp.eye(1), jnp.eye(1), steps)
    >>> moments.covariance[jnp.array([0, 1, 2, 200]), 0, 0].round(4)
    Array([0.    , 0.25  , 0.3125, 0.3333], dtype=float32)
    """
    owner = "transient.path"
    k = require_symmetric(owner, "hessian", hessian)
    steps = jnp.asarray(step_sizes, k.dtype)
    if steps.ndim != 1:
        raise ValueError(f"{owner}: step_sizes must be [T], one per step, got {steps.shape}.")
    total = steps.shape[0]
    noises = _noises(owner, noise, total, k)
    mus = jnp.broadcast_to(jnp.asarray(require_momentum(owner, momentum), k.dtype), steps.shape)
    curvatures, vectors = jnp.linalg.eigh(k)
    mean, cov = (0 * k[0], 0 * k) if start is None else start
    # In the eigenbasis iterate and velocity of one coordinate form a pair, and pairs of coordinates
    # a 2 x 2 block: d^2 small products a step in place of one of size 2 d.
    mean = jnp.stack([vectors.T @ mean, 0 * k[0]], -1)
    blocks = jnp.zeros((*k.shape, 2, 2), k.dtype).at[..., 0, 0].set(vectors.T @ cov @ vectors)

    def body(
        carry: tuple[Array, Array], at: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], MeanAndCovariance]:
        (mean, blocks), (lam, mu, c) = carry, at
        maps = transfer_maps(curvatures, lam, mu)
        mean = jnp.einsum("iab,ib->ia", maps, mean)
        blocks = jnp.einsum("iac,ijcd,jbd->ijab", maps, blocks, maps)
        blocks = blocks + (vectors.T @ c @ vectors)[..., None, None] * noise_input(lam, k.dtype)
        return (mean, blocks), back(mean, blocks)

    def back(mean: Array, blocks: Array) -> MeanAndCovariance:
        return MeanAndCovariance(vectors @ mean[:, 0], vectors @ blocks[..., 0, 0] @ vectors.T)

    first = back(mean, blocks)
    _, rest = jax.lax.scan(body, (mean, blocks), (steps, mus, noises))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def _noises(owner: str, noise: ArrayLike, total: int, like: Array) -> Array:
    if jnp.ndim(noise) != 3:
        c = require_semi_definite(owner, "noise", noise)
        require_same_size(owner, hessian=like, noise=c)
        return jnp.broadcast_to(c.astype(like.dtype), (total, *like.shape))
    if jnp.shape(noise) != (total, *like.shape):
        raise ValueError(
            f"{owner}: noise must be [d, d] or [T, d, d] = {(total, *like.shape)}, "
            f"got {jnp.shape(noise)}."
        )
    return jnp.asarray(noise, like.dtype)


_RENAMED: dict[str, tuple[str, object]] = {
    "Moments": ("MeanAndCovariance", MeanAndCovariance),
}


def __getattr__(name: str) -> object:
    """Return what an old name stands for, with a warning."""
    return resolve_renamed(__name__, _RENAMED, name)
