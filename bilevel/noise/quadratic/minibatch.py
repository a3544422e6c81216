r"""SGD on the minibatches themselves: noise that grows with the distance from the minimum.

Every example has its own Hessian ``H_i`` (symmetric; mean ``K``) and gradient ``g_i`` at the
minimum (covariance ``C1``). A batch is described by its noise fraction ``p``: the covariance of a
batch mean is ``p`` times that of one example (``noise.batch_factor``).

Source: Mulayoff and Michaeli, "Exact mean square linear stability analysis for SGD",
arXiv:2306.07850, for plain SGD and batches without replacement. With replacement, and the closed
form for the heavy ball, follow from the same argument: with ``D(lam)`` the divisor of the
covariance equation (``noise.steady_state``), the second moments are stable if and only if
``D(lam) - lam p E dH (x) dH`` is positive definite, and that is linear in ``lam``. For Nesterov's
momentum it is not: its limit is located by :mod:`bilevel.noise.nesterov_momentum`.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks, nesterov_momentum
from bilevel.utils import (
    is_traced,
    require_momentum,
    require_positive_scalars,
    require_semi_definite,
)


def covariance(
    hessians: ArrayLike,
    noise: ArrayLike,
    step_size: float | Array,
    p: float | Array,
    momentum: float | Array = 0.0,
    nesterov: bool = False,
) -> Array:
    """Return the stationary covariance ``[d, d]`` of linear regression, or of any linearised loss.

    The covariance equation with ``C = p (C1 + E dH S dH)``, ``dH = H_i - K``, solved for ``S``.

    Parameters
    ----------
    hessians : ``H_i [n, d, d]``, one per example, with a positive definite mean.
    noise : ``C1 [d, d]``, the covariance of the per-example gradients at the minimum.
    step_size : below :func:`step_limit`.
    p : noise fraction of a batch, ``noise.batch_factor``; 0 is the full batch.
    momentum, nesterov : in [0, 1), of the heavy ball or of Nesterov.

    Raises
    ------
    ValueError : as ``noise.steady_state.covariance``, and a step size beyond :func:`step_limit`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> H = jnp.array([0.5, 1.5]).reshape(2, 1, 1)
    >>> noise.minibatch.covariance(H, jnp.eye(1), 0.2, p=1.0).round(4)
    Array([[0.1143]], dtype=float32)
    """
    owner = "minibatch.covariance"
    basis, k, second, mu = _spectrum(owner, hessians, p, momentum)
    c1 = require_semi_definite(owner, "noise", noise)
    d = k.shape[0]
    if c1.shape != (d, d):
        raise ValueError(f"{owner}: noise must be {(d, d)} as the Hessians, got {c1.shape}.")
    checks.require_hessian(owner, jnp.diag(k))
    require_positive_scalars(owner, step_size=step_size)
    limit = _limit(k, second, mu, nesterov)
    checks.below_limit(owner, step_size, limit, "the step size")
    if nesterov:
        alone = nesterov_momentum.noise_divisor(step_size * k, mu) / step_size
    else:
        linear, quadratic = _divisor(k, mu)
        alone = linear - step_size * quadratic
    system = jnp.diag(alone.ravel()) - step_size * second
    source = step_size * p * (basis.T @ c1 @ basis)
    solved = jnp.linalg.solve(system, source.ravel()).reshape(d, d)
    return basis @ solved @ basis.T


def step_limit(
    hessians: ArrayLike,
    p: float | Array,
    momentum: float | Array = 0.0,
    nesterov: bool = False,
) -> Array:
    r"""Return the exact mean-square limit of the step size.

    ``()``. The derivative of SGD shares it.

    ``2 (1-mu) / lambda_max(V^-1/2 [(1-mu)/(1+mu) K (x) K - mu/(1-mu^2) (K (x) I - I (x) K)^2
    + p E dH (x) dH] V^-1/2)``, ``V = (K (x) I + I (x) K) / 2``: for ``mu = 0`` the ``eta_var``
    of Mulayoff and Michaeli. Below it mean and covariance converge. Between it and
    ``2 (1 + mu) / k_max`` the mean converges while the variance grows without bound.
    O(n d^4 + d^6), for Nesterov a hundred times that; for large d use :func:`certificate`.

    Parameters
    ----------
    hessians : ``[n, d, d]``. Directions that no example curves are left out.
    p, momentum, nesterov : as for :func:`covariance`.

    Raises
    ------
    ValueError : a mean Hessian with a negative eigenvalue, or directions that are flat on average
        but not for every example, along which no step size is stable.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> H = jnp.array([0.5, 1.5]).reshape(2, 1, 1)
    >>> [round(float(noise.minibatch.step_limit(H, p)), 4) for p in (1.0, 0.0)]  # 2k / E h^2
    [1.6, 2.0]
    """
    _, k, second, mu = _spectrum("minibatch.step_limit", hessians, p, momentum)
    return _limit(k, second, mu, nesterov)


def certificate(
    largest_curvature: float | Array, largest_example_curvature: float | Array, p: float | Array
) -> Array:
    """Return a step size that is stable for certain (plain SGD), from two numbers; ``()``.

    ``2 / ((1-p) k_max + p max_i |H_i|) <= step_limit``, for positive semi-definite ``H_i``.

    Raises
    ------
    ValueError : curvatures that are not positive, ``p`` outside [0, 1].
    """
    owner = "minibatch.certificate"
    require_positive_scalars(
        owner,
        largest_curvature=largest_curvature,
        largest_example_curvature=largest_example_curvature,
    )
    _require_fraction(owner, p)
    return jnp.asarray(2 / ((1 - p) * largest_curvature + p * largest_example_curvature))


def _require_fraction(owner: str, p: float | Array) -> None:
    if not is_traced(p) and not 0 <= float(p) <= 1:
        raise ValueError(
            f"{owner}: p is the noise fraction of a batch and lies in [0, 1], got {p}. "
            "Make it with noise.batch_factor(n, batch_size)."
        )


def _spectrum(
    owner: str, hessians: ArrayLike, p: float | Array, momentum: float | Array
) -> tuple[Array, Array, Array, float | Array]:
    """Return ``(U, k, p E dH (x) dH, mu)`` in the eigenbasis of the mean.

    Flat directions cut off.
    """
    _require_fraction(owner, p)
    mu = require_momentum(owner, momentum)
    h = jnp.asarray(hessians)
    if h.ndim != 3 or h.shape[1] != h.shape[2]:
        raise ValueError(f"{owner}: hessians must be [n, d, d], one per example, got {h.shape}.")
    cure = "Along falling directions no step size is stable: add a penalty."
    k, basis = jnp.linalg.eigh(require_semi_definite(owner, "the mean Hessian", h.mean(0), cure))
    d = k.shape[0]
    k = jnp.where(k > 10 * d * jnp.finfo(k.dtype).eps * k[-1], k, 0.0)
    spread = jnp.einsum("ai,nab,bj->nij", basis, h - h.mean(0), basis)
    flat = k == 0
    if not is_traced(spread):
        leak = np.abs(np.asarray(spread)[:, np.asarray(flat)]).max(initial=0.0)
        if leak > 1e3 * float(jnp.finfo(k.dtype).eps) * float(np.abs(np.asarray(h)).max()):
            raise ValueError(
                f"{owner}: a direction is flat on average but not for every example (entries up "
                f"to {leak:.3g}): there is no stable step size. Add a penalty."
            )
    second = p * jnp.einsum("nij,nkl->ikjl", spread, spread) / h.shape[0]
    return basis, k, second.reshape(d * d, d * d), mu


def _divisor(k: Array, mu: float | Array) -> tuple[Array, Array]:
    """Return ``D_ij = linear - lam quadratic``, each ``[d, d]``, the divisor in the eigenbasis."""
    ki, kj = k[:, None], k[None, :]
    quadratic = (1 - mu) / (1 + mu) * ki * kj - mu / (1 - mu**2) * (ki - kj) ** 2
    return (1 - mu) * (ki + kj), quadratic


def _limit(k: Array, second: Array, mu: float | Array, nesterov: bool) -> Array:
    if nesterov:
        return _nesterov_limit(k, second, mu)
    linear, quadratic = (x.ravel() for x in _divisor(k, mu))
    scale = jnp.where(linear > 0, 1 / jnp.sqrt(jnp.where(linear > 0, linear, 1.0)), 0.0)
    matrix = scale[:, None] * (jnp.diag(quadratic) + second) * scale
    return 1 / jnp.linalg.eigvalsh(matrix)[-1]


def _nesterov_limit(k: Array, second: Array, mu: float | Array) -> Array:
    both = (k[:, None] + k[None, :]).ravel() > 0

    def feedback(step_size: Array) -> Array:
        alone = nesterov_momentum.noise_divisor(step_size * k, mu).ravel() / step_size**2
        scale = jnp.where(both, 1 / jnp.sqrt(jnp.where(both, alone, 1.0)), 0.0)
        return jnp.linalg.eigvalsh(scale[:, None] * second * scale)[-1]

    edge = nesterov_momentum.curvature_limit(mu) / k[-1]
    return nesterov_momentum.first_crossing(feedback, edge)
