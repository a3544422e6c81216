"""The stationary covariance of SGD with momentum and a matrix learning rate, at any step size.

Quadratic loss of Hessian ``K``, gradient noise of covariance ``C`` that is independent from step to
step (noise that depends on ``w``: put its stationary average; minibatches of one epoch: see
``noise.epochs``), heavy ball ``m <- mu m + g``, ``w <- w - L m`` with a rate ``L`` that is a number
or a symmetric positive definite matrix. For ``m <- mu m + (1 - mu) g`` put ``(1 - mu) L``.
Nesterov's (:mod:`bilevel.noise.nesterov_momentum`) has another divisor and another limit.

Source: Liu, Ziyin, Ueda, "Noise and fluctuation of finite learning rate stochastic gradient
descent", ICML 2021, arXiv:2012.03636, as quoted in arXiv:2102.05375, Theorem 1.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks, nesterov_momentum
from bilevel.utils import (
    require_definite,
    require_momentum,
    require_positive_scalars,
    require_same_size,
    require_semi_definite,
)


def covariance(
    hessian: ArrayLike,
    noise: ArrayLike,
    rate: float | Array,
    momentum: float | Array = 0.0,
    nesterov: bool = False,
) -> Array:
    r"""Return the stationary covariance of the iterates, ``[d, d]``; for any ``K``, ``C``, ``L``.

    It solves ``(1-mu) (L K S + S K L) - (1+mu^2)/(1-mu^2) L K S K L
    + mu/(1-mu^2) (L K L K S + S K L K L) = L C L``, which in the basis where ``L^{1/2} K L^{1/2}``
    is ``diag(a)`` is one division by ``(1-mu) (a_i + a_j) - (1-mu)/(1+mu) a_i a_j
    + mu/(1-mu^2) (a_i - a_j)^2`` per entry: O(d^3), where a linear solve takes O(d^6).

    Parameters
    ----------
    hessian : ``K [d, d]``, positive definite.
    noise : ``C [d, d]``, covariance of one step's gradient; may be singular.
    rate : ``L``, a number or ``[d, d]``.
    momentum : ``mu`` in [0, 1).
    nesterov : Nesterov's momentum, ``w <- w - L (g + mu m)``, in place of the heavy ball.

    Raises
    ------
    ValueError : an indefinite or singular Hessian, an indefinite covariance, or a rate beyond the
        limit (an eigenvalue of ``L K`` at or above ``2 (1 + mu)``, of Nesterov over ``1 + 2 mu``):
        there is no stationary state.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> S = noise.steady_state.covariance(jnp.diag(jnp.array([0.5, 1.0])), jnp.eye(2), 1.0)
    >>> jnp.diag(S).round(4)  # lam c / (k (2 - lam k)); continuous time would say [1, 0.5]
    Array([1.3333, 1.    ], dtype=float32)
    """
    setting = hessian, noise, rate, momentum
    basis, a, rotated, mu = _modes("steady_state.covariance", *setting, nesterov)
    divisor = nesterov_momentum.noise_divisor(a, mu) if nesterov else covariance_divisor(a, mu)
    return basis @ (rotated / divisor) @ basis.T


def covariance_divisor(a: Array, momentum: float | Array) -> Array:
    """Return the divisor ``[d, d]`` of the covariance equation.

    From the eigenvalues ``a`` of ``L K``.
    """
    mu, ai, aj = momentum, a[:, None], a[None, :]
    across = mu / (1 - mu**2) * (ai - aj) ** 2
    return (1 - mu) * (ai + aj) - (1 - mu) / (1 + mu) * ai * aj + across


def continuous_covariance(
    hessian: ArrayLike, noise: ArrayLike, rate: float | Array, momentum: float | Array = 0.0
) -> Array:
    """Return what continuous time predicts instead, ``[d, d]``.

    ``L K S + S K L = L C L / (1 - mu)``.

    The limit of small rates, for contrast only: it stays finite where the true covariance
    diverges. Arguments and refusals as for :func:`covariance`.
    """
    owner = "steady_state.continuous_covariance"
    basis, a, rotated, mu = _modes(owner, hessian, noise, rate, momentum)
    return basis @ (rotated / ((1 - mu) * (a[:, None] + a[None, :]))) @ basis.T


def commuting_covariance(
    hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, momentum: float | Array = 0.0
) -> Array:
    """Return ``step_size / (1-mu) C K^-1 [2 - step_size K / (1+mu)]^-1``, for ``C K = K C``.

    ``[d, d]``.

    One solve and no eigenbasis (Liu et al. 2021; Corollary 3 of arXiv:2102.05375).

    Raises
    ------
    ValueError : as :func:`covariance`, and where the two matrices do not commute.
    """
    owner = "steady_state.commuting_covariance"
    k, c, mu = _inputs(owner, hessian, noise, momentum)
    require_positive_scalars(owner, step_size=step_size)
    checks.require_commuting(owner, hessian=k, noise=c)
    checks.below_limit(owner, step_size, step_limit(k, mu), "the step size")
    bracket = 2 * k - step_size / (1 + mu) * k @ k
    solved = step_size / (1 - mu) * jnp.linalg.solve(bracket, c)
    return (solved + solved.T) / 2


def step_limit(
    hessian: ArrayLike,
    momentum: float | Array = 0.0,
    preconditioner: float | Array = 1.0,
    nesterov: bool = False,
) -> Array:
    """Return largest ``s`` for which ``rate = s * preconditioner`` has a stationary state; ``()``.

    ``2 (1 + mu) / largest eigenvalue of (preconditioner K)``, by the Jury test on
    ``z^2 - (1 + mu - a) z + mu``; Nesterov's (``nesterov``) over ``1 + 2 mu``. This is the limit
    for *additive* noise; minibatches have a lower one, ``noise.minibatch.step_limit``.

    Raises
    ------
    ValueError : an indefinite or singular Hessian or preconditioner, momentum outside [0, 1).
    """
    owner = "steady_state.step_limit"
    k = checks.require_hessian(owner, hessian)
    root = rate_root(owner, preconditioner, k)
    mu = require_momentum(owner, momentum)
    return _edge(mu, nesterov) / jnp.linalg.eigvalsh(root @ k @ root)[-1]


def residual(
    covariance: ArrayLike,
    hessian: ArrayLike,
    noise: ArrayLike,
    rate: ArrayLike,
    momentum: float | Array = 0.0,
) -> Array:
    """Return by how much a covariance misses the equation of :func:`covariance`; ``()``.

    Largest entry of the difference of the two sides over the largest of ``L C L``.
    """
    k, c, s = jnp.asarray(hessian), jnp.asarray(noise), jnp.asarray(covariance)
    rate = jnp.asarray(rate)
    lam, mu = (rate * jnp.eye(k.shape[0]) if rate.ndim == 0 else rate), momentum
    a = lam @ k
    left = (1 - mu) * (a @ s + s @ a.T) - (1 + mu**2) / (1 - mu**2) * (a @ s @ a.T)
    left = left + mu / (1 - mu**2) * (a @ a @ s + s @ a.T @ a.T)
    right = lam @ c @ lam
    return jnp.max(jnp.abs(left - right)) / jnp.max(jnp.abs(right))


def loss_floor(
    hessian: ArrayLike,
    noise: ArrayLike,
    rate: float | Array,
    momentum: float | Array = 0.0,
    nesterov: bool = False,
) -> Array:
    """Return the excess training loss ``Tr[K S] / 2`` of the stationary state; ``()``.

    For a scalar rate and the heavy ball it equals ``rate / (4 (1-mu)) Tr[(I - rate K / (2
    (1+mu)))^-1 C]``, whether or not ``K`` and ``C`` commute. Arguments and refusals as for
    :func:`covariance`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> K, C = jnp.diag(jnp.array([0.5, 1.0])), jnp.eye(2)
    >>> round(float(noise.steady_state.loss_floor(K, C, 0.1)), 4)
    0.052
    >>> [round(float(x), 4) for x in noise.steady_state.floor_bracket(2.0, 1.0, 0.1)]
    [0.05, 0.0526]
    """
    S = covariance(hessian, noise, rate, momentum, nesterov)
    return jnp.trace(jnp.asarray(hessian) @ S) / 2


def floor_bracket(
    noise_trace: float | Array,
    largest_curvature: float | Array,
    step_size: float | Array,
    momentum: float | Array = 0.0,
) -> tuple[Array, Array]:
    """Return bounds of :func:`loss_floor` from ``Tr C`` and the largest curvature alone.

    ``step_size Tr C / (4 (1-mu))``, and that over ``1 - step_size k_max / (2 (1+mu))``; scalar
    step sizes. ``Tr C`` needs per-example gradients only, ``k_max`` some Lanczos steps.

    Raises
    ------
    ValueError : an argument that is not positive, or a step size beyond the limit.
    """
    owner = "steady_state.floor_bracket"
    require_positive_scalars(
        owner, noise_trace=noise_trace, largest_curvature=largest_curvature, step_size=step_size
    )
    mu = require_momentum(owner, momentum)
    limit = 2 * (1 + mu) / largest_curvature
    checks.below_limit(owner, step_size, limit, "the step size")
    low = jnp.asarray(step_size * noise_trace / (4 * (1 - mu)))
    return low, low / (1 - step_size / limit)


def rate_root(owner: str, rate: float | Array, like: Array) -> Array:
    """Return the symmetric square root ``[d, d]`` of a rate that is a number or a matrix."""
    if jnp.ndim(rate) == 0:
        require_positive_scalars(owner, rate=rate)
        return jnp.sqrt(jnp.asarray(rate, like.dtype)) * jnp.eye(like.shape[0], dtype=like.dtype)
    rate = require_definite(owner, "rate", rate, "A preconditioner has to be.")
    require_same_size(owner, hessian=like, rate=rate)
    values, vectors = jnp.linalg.eigh(rate)
    return (vectors * jnp.sqrt(values)) @ vectors.T


def _inputs(
    owner: str, hessian: ArrayLike, noise: ArrayLike, momentum: float | Array
) -> tuple[Array, Array, float | Array]:
    k = checks.require_hessian(owner, hessian)
    c = require_semi_definite(owner, "noise", noise)
    require_same_size(owner, hessian=k, noise=c)
    return k, c, require_momentum(owner, momentum)


def _edge(momentum: float | Array, nesterov: bool) -> float | Array:
    """Return the eigenvalue of ``L K`` below which the mean converges."""
    return nesterov_momentum.curvature_limit(momentum) if nesterov else 2 * (1 + momentum)


def _modes(
    owner: str,
    hessian: ArrayLike,
    noise: ArrayLike,
    rate: float | Array,
    momentum: float | Array,
    nesterov: bool = False,
) -> tuple[Array, Array, Array, float | Array]:
    """Return ``(W, a, W^T C W, mu)`` with ``L = W W^T`` and ``L K W = W diag(a)``."""
    k, c, mu = _inputs(owner, hessian, noise, momentum)
    root = rate_root(owner, rate, k)
    a, vectors = jnp.linalg.eigh(root @ k @ root)
    what = "the largest eigenvalue of rate * hessian"
    checks.below_limit(owner, a[-1], _edge(mu, nesterov), what)
    basis = root @ vectors
    return basis, a, basis.T @ c @ basis, mu
