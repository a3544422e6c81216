"""SGD as a sampler: the learning rate whose stationary law is nearest to a Gaussian posterior.

Target: the posterior ``N(w*, K^-1 / N)`` of ``N`` observations, ``K`` the Hessian of the mean loss.
Source: the question of Liu, Ziyin, Ueda (ICML 2021, section on Bayesian inference; continuous time:
Mandt, Hoffman, Blei, JMLR 2017); the formulas are derived here from the exact covariance.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.noise.quadratic import steady_state
from bilevel.utils import (
    require_definite,
    require_positive_scalars,
    require_same_size,
    require_semi_definite,
)

_GRID, _BISECTIONS = 256, 100


def matrix_rate(hessian: ArrayLike, noise: ArrayLike, observations: float | Array) -> Array:
    """Return the rate ``2 (K + N C)^-1`` whose stationary covariance is exactly ``K^-1 / N``.

    ``[d, d]``.

    Continuous time would say ``2 (N C)^-1``.

    Raises
    ------
    ValueError : a singular covariance ``C`` (along a direction without noise the rate would be
        ``2 / k``, the limit at which SGD oscillates for ever), a singular or indefinite Hessian.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> K, C = jnp.diag(jnp.array([0.5, 1.0])), jnp.eye(2)
    >>> rate = noise.posterior.matrix_rate(K, C, 50)
    >>> noise.steady_state.covariance(K, C, rate).diagonal().round(4)  # 1 / (50 k)
    Array([0.04, 0.02], dtype=float32)
    """
    k, c = _inputs("posterior.matrix_rate", hessian, noise, observations)
    _require_full_rank("posterior.matrix_rate", c)
    inverse = jnp.linalg.inv(k + observations * c)
    return inverse + inverse.T  # twice the inverse, symmetric to the last bit


def scalar_rate(hessian: ArrayLike, noise: ArrayLike, observations: float | Array) -> Array:
    r"""Return the number that minimises :func:`divergence` over all stable step sizes; ``()``.

    Where ``K`` and ``C`` commute it is the root of ``sum_i (N lam c_i / (2 - lam k_i) - 1)
    / (2 - lam k_i) = 0``; in general the divergence is minimised numerically, as that root is then
    not its minimum. Continuous time would say ``2 d / (N Tr C)``.

    Raises
    ------
    ValueError : a singular covariance ``C`` (the law has no density), a singular or indefinite
        Hessian.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> round(float(noise.posterior.scalar_rate(jnp.eye(2), jnp.eye(2), 9)), 4)  # 2 / (1 + 9)
    0.2
    """
    owner = "posterior.scalar_rate"
    k, c = _inputs(owner, hessian, noise, observations)
    _require_full_rank(owner, c)
    values, vectors = jnp.linalg.eigh(k)
    rotated = vectors.T @ c @ vectors

    def objective(log_step: Array) -> Array:
        step = jnp.exp(log_step)
        s = step * rotated / steady_state.covariance_divisor(step * values, 0.0) * step
        return _divergence(values, s, observations)

    slope = jax.grad(objective)
    top = jnp.log(2 / values[-1])
    # The minimum is never far below 1 / (N C + K): start the grid well under that.
    bottom = jnp.log(1e-3 / (values[-1] + observations * jnp.linalg.norm(rotated)))
    grid = jnp.linspace(bottom, top, _GRID + 1)[:-1]
    best = jnp.argmin(jax.vmap(objective)(grid))
    start = (grid[jnp.maximum(best - 1, 0)], jnp.where(best + 1 < _GRID, grid[best + 1], top))

    def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) / 2
        rising = slope(middle) > 0
        return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    return jnp.exp((low + high) / 2)


def divergence(
    hessian: ArrayLike, noise: ArrayLike, observations: float | Array, rate: float | Array
) -> Array:
    """Return ``KL(N(0, S) || N(0, K^-1/N)) = (N Tr[K S] - d - log det(N K S)) / 2``; ``()``.

    ``S`` is ``noise.steady_state.covariance(hessian, noise, rate)``.

    Raises
    ------
    ValueError : a singular ``C``, for which it is infinite; a rate beyond the limit.
    """
    owner = "posterior.divergence"
    k, c = _inputs(owner, hessian, noise, observations)
    _require_full_rank(owner, c)
    values, vectors = jnp.linalg.eigh(k)
    s = steady_state.covariance(k, c, rate)
    return _divergence(values, vectors.T @ s @ vectors, observations)


def _divergence(values: Array, s: Array, observations: float | Array) -> Array:
    root = jnp.sqrt(observations * values)
    ratio = root[:, None] * s * root
    logdet = 2 * jnp.sum(jnp.log(jnp.diag(jnp.linalg.cholesky(ratio))))
    return (jnp.trace(ratio) - values.shape[0] - logdet) / 2


def _inputs(
    owner: str, hessian: ArrayLike, noise: ArrayLike, observations: float | Array
) -> tuple[Array, Array]:
    k, c = checks.require_hessian(owner, hessian), require_semi_definite(owner, "noise", noise)
    require_same_size(owner, hessian=k, noise=c)
    require_positive_scalars(owner, observations=observations)
    return k, c


def _require_full_rank(owner: str, c: Array) -> None:
    cure = (
        "Along a direction without noise SGD does not sample at all: restrict the problem to the "
        "directions that have noise, or add noise."
    )
    require_definite(owner, "noise", c, cure)
