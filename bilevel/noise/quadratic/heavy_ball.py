"""The pair (iterate, velocity) of SGD on a quadratic as one linear process, mode by mode.

In the eigenbasis of the Hessian, ``(w, m)_i <- A_i (w, m)_i + b xi_i`` with
``A_i = [[1 - lam k_i, -lam mu], [k_i, mu]]`` and ``b = (-lam, 1)``: 2 x 2 blocks, one for each pair
of modes, instead of matrices of size 2d.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bilevel.noise import checks
from bilevel.utils import (
    require_momentum,
    require_positive_scalars,
    require_same_size,
    require_semi_definite,
)


class Joint(NamedTuple):
    """Stationary ``E[w w^T]``, ``E[w m^T]``, ``E[m m^T]`` after a step, each ``[d, d]``."""

    params: Array
    cross: Array
    velocity: Array


def transfer_maps(curvatures: Array, step_size: float | Array, momentum: float | Array) -> Array:
    """Return the maps ``A_i``, ``[d, 2, 2]``, of one step."""
    ones = jnp.ones_like(curvatures)
    top = jnp.stack([1 - step_size * curvatures, -step_size * momentum * ones], -1)
    return jnp.stack([top, jnp.stack([curvatures, momentum * ones], -1)], -2)


def noise_input(step_size: float | Array, dtype: DTypeLike) -> Array:
    """Return how noise enters, ``b b^T``, ``[2, 2]``."""
    b = jnp.stack([-jnp.asarray(step_size, dtype), jnp.ones((), dtype)])
    return jnp.outer(b, b)


def stationary_blocks(
    curvatures: Array, noise: Array, step_size: float | Array, momentum: float | Array
) -> Array:
    """Return ``P_ij = A_i P_ij A_j^T + C_ij b b^T``, ``[d, d, 2, 2]``.

    ``noise`` in the eigenbasis.
    """
    maps, d = transfer_maps(curvatures, step_size, momentum), curvatures.shape[0]
    lifted = jnp.einsum("iac,jbd->ijabcd", maps, maps).reshape(d, d, 4, 4)
    source = noise[..., None] * noise_input(step_size, noise.dtype).reshape(4)
    solved = jnp.linalg.solve(jnp.eye(4, dtype=noise.dtype) - lifted, source[..., None])
    return solved.reshape(d, d, 2, 2)


def joint_covariance(
    hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, momentum: float | Array = 0.0
) -> Joint:
    """Return the stationary second moments of the iterate and of the velocity, :class:`Joint`.

    The first is ``noise.steady_state.covariance``, reached another way (4 x 4 solves).

    Raises
    ------
    ValueError : an indefinite or singular Hessian, a step size beyond ``2 (1 + mu) / k_max``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> joint = noise.heavy_ball.joint_covariance(jnp.eye(1), jnp.eye(1), 0.5)
    >>> [round(float(x[0, 0]), 4) for x in joint]
    [0.3333, -0.3333, 1.3333]
    """
    owner = "heavy_ball.joint_covariance"
    curvatures, vectors, rotated, mu = noise_in_eigenmodes(owner, hessian, noise, momentum)
    require_positive_scalars(owner, step_size=step_size)
    limit = 2 * (1 + mu) / curvatures[-1]
    checks.below_limit(owner, step_size, limit, "the step size")
    blocks = stationary_blocks(curvatures, rotated, step_size, mu)
    entries = ((0, 0), (0, 1), (1, 1))
    return Joint(*(vectors @ blocks[..., a, b] @ vectors.T for a, b in entries))


def noise_in_eigenmodes(
    owner: str, hessian: ArrayLike, noise: ArrayLike, momentum: float | Array
) -> tuple[Array, Array, Array, float | Array]:
    """Return ``(k, U, U^T C U, mu)`` of a positive definite Hessian and a covariance."""
    k = checks.require_hessian(owner, hessian)
    c = require_semi_definite(owner, "noise", noise)
    require_same_size(owner, hessian=k, noise=c)
    curvatures, vectors = jnp.linalg.eigh(k)
    return curvatures, vectors, vectors.T @ c @ vectors, require_momentum(owner, momentum)
