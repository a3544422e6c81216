"""Stationary covariance of damped Newton, natural gradient, and Adam.

Sources: Liu, Ziyin, Ueda (ICML 2021, arXiv:2012.03636) and arXiv:2102.05375 for Newton and natural
gradient; the Adam fixed point is derived here from the covariance equation of ``steady_state``.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.noise.quadratic import gaussian_inputs, steady_state
from bilevel.utils import (
    PyTree,
    is_traced,
    require_momentum,
    require_positive_int,
    require_positive_scalars,
    require_same_size,
    require_semi_definite,
)

_SWEEPS = 2000


def newton(
    hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, momentum: float | Array = 0.0
) -> Array:
    """Return the covariance under the rate ``step_size K^-1``, for any ``K`` and ``C``; ``[d, d]``.

    ``lam (1+mu) / ((1-mu) (2 (1+mu) - lam)) K^-1 C K^-1``.

    Raises
    ------
    ValueError : ``step_size`` at or above ``2 (1 + mu)``, a singular or indefinite Hessian.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> noise.preconditioned.newton(jnp.diag(jnp.array([0.5, 1.0])), jnp.eye(2), 1.0).diagonal()
    Array([4., 1.], dtype=float32)
    """
    owner = "preconditioned.newton"
    k, c = checks.require_hessian(owner, hessian), require_semi_definite(owner, "noise", noise)
    require_same_size(owner, hessian=k, noise=c)
    mu = require_momentum(owner, momentum)
    require_positive_scalars(owner, step_size=step_size)
    checks.below_limit(owner, step_size, 2 * (1 + mu), "the step size")
    factor = step_size * (1 + mu) / ((1 - mu) * (2 * (1 + mu) - step_size))
    inner = jnp.linalg.solve(k, jnp.linalg.solve(k, c).T)
    return factor * (inner + inner.T) / 2


def newton_minibatch(
    inputs: ArrayLike,
    label_variance: float | Array,
    step_size: float | Array,
    batch_size: int,
    momentum: float | Array = 0.0,
) -> Array:
    """Return the covariance of damped Newton on minibatches of Gaussian regression; ``[d, d]``.

    ``lam s^2 / (g B - lam d) A^-1``, ``g = 2 (1-mu) - ((1-mu)/(1+mu) + 1/B) lam``: whitening makes
    it ``noise.gaussian_inputs`` with ``A = I``. The limit, ``g B = lam d``, falls with ``d``.

    Raises
    ------
    ValueError : a step size beyond that limit, a singular or indefinite ``A [d, d]``.
    """
    a = checks.require_hessian("preconditioned.newton_minibatch", inputs)
    white = jnp.eye(a.shape[0], dtype=a.dtype)
    s = gaussian_inputs.covariance(white, label_variance, step_size, batch_size, momentum)
    return s[0, 0] * jnp.linalg.inv(a)


def natural_gradient(
    hessian: ArrayLike, step_size: float | Array, batch_size: int, momentum: float | Array = 0.0
) -> Array:
    """Return the covariance under ``step_size J^-1`` with ``J = K S K``, ``C = J / B``; ``[d, d]``.

    ``(lam/2) [1/(1+mu) + 1/((1-mu) B)] K^-1``. The model identifies the Fisher matrix ``J`` and
    the noise with the second moment of the gradient ``K w``: it holds for losses without noise of
    their own (no label noise), and is a reconstruction that yields the paper's formula.

    Raises
    ------
    ValueError : a singular or indefinite Hessian, a step size that is not positive.
    """
    owner = "preconditioned.natural_gradient"
    return _natural(owner, hessian, step_size, batch_size, momentum, 1)


def natural_gradient_minibatch(
    hessian: ArrayLike, step_size: float | Array, batch_size: int, momentum: float | Array = 0.0
) -> Array:
    """Return the covariance with the exact minibatch noise of Gaussian regression; ``[d, d]``.

    ``(lam/2) [1/((1+d) (1+mu)) + 1/((1-mu) B)] K^-1`` (arXiv:2102.05375).

    Caveat: this is a statement about ideal second moments. Without label noise the iteration sits
    exactly at the edge of mean-square stability, the moments are carried by rare runs, and a
    finite ensemble does not reproduce them: 6000 chains gave 1.6 to 2.1 times the formula at
    ``B = 4``, 0.99 to 1.24 times at ``B = 16``.

    Raises
    ------
    ValueError : a singular or indefinite Hessian, a step size that is not positive.
    """
    owner = "preconditioned.natural_gradient_minibatch"
    return _natural(owner, hessian, step_size, batch_size, momentum, 1 + jnp.shape(hessian)[0])


def _natural(
    owner: str,
    hessian: ArrayLike,
    step_size: float | Array,
    batch_size: int,
    momentum: float | Array,
    ratio: int,
) -> Array:
    k, mu = checks.require_hessian(owner, hessian), require_momentum(owner, momentum)
    require_positive_int(owner, "batch_size", batch_size)
    require_positive_scalars(owner, step_size=step_size)
    factor = step_size / 2 * (1 / (ratio * (1 + mu)) + 1 / ((1 - mu) * batch_size))
    return factor * jnp.linalg.inv(k)


def root_fisher(
    dimension: int, step_size: float | Array, batch_size: int, momentum: float | Array = 0.0
) -> Array:
    """Return the covariance under the rate ``step_size J^-1/2``, ``J = K S K``, ``C = J / B``.

    ``[d, d]``.

    The idealised Adam, all matrices commuting: ``(lam^2/4) [1/(1+mu) + 1/((1-mu) B)]^2 I``,
    whatever the Hessian. For Adam itself with additive noise see :func:`adam`.

    Raises
    ------
    ValueError : a step size that is not positive, momentum outside [0, 1).
    """
    owner = "preconditioned.root_fisher"
    identity = jnp.eye(dimension)
    return _natural(owner, identity, step_size, batch_size, momentum, 1) ** 2


def adam(
    hessian: ArrayLike, noise: ArrayLike, step_size: float | Array, momentum: float | Array = 0.9
) -> tuple[Array, Array]:
    r"""Return ``(covariance [d, d], second moment v [d])`` of Adam or RMSProp, ``b2`` near 1.

    The fixed point of ``v = diag(K S K + C)``, ``L = step_size (1 - momentum) diag(v)^-1/2``,
    ``S`` from ``noise.steady_state.covariance``. It takes the denominator as constant (``b2 -> 1``,
    no epsilon); against simulated Adam with ``b2 = 0.999`` it was right within 3 %.

    Parameters
    ----------
    hessian, noise : ``K``, ``C``, ``[d, d]``; ``C`` needs a positive diagonal.
    step_size : Adam's; any positive number has a fixed point, as larger steps raise ``v``.
    momentum : Adam's ``b1``.

    Raises
    ------
    ValueError : a singular or indefinite Hessian, a coordinate without noise, or no convergence.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> S, v = noise.preconditioned.adam(jnp.eye(1), jnp.eye(1), 0.1, momentum=0.0)
    >>> [round(float(x), 4) for x in (S[0, 0], v[0])]
    [0.0513, 1.0513]
    """
    owner = "preconditioned.adam"
    k, c = checks.require_hessian(owner, hessian), require_semi_definite(owner, "noise", noise)
    require_same_size(owner, hessian=k, noise=c)
    require_positive_scalars(owner, step_size=step_size)
    mu = require_momentum(owner, momentum)
    if not is_traced(c) and np.asarray(jnp.diag(c)).min() <= 0:
        raise ValueError(f"{owner}: every coordinate needs noise (a positive diagonal of C).")
    logs, gap = _adam_fixed_point(k, c, step_size * (1 - mu), mu)
    if not is_traced(gap) and not float(gap) < float(jnp.finfo(k.dtype).eps) ** 0.5:
        raise ValueError(f"{owner}: the fixed point was not reached, log v still moves by {gap}.")
    return _adam_covariance(k, c, step_size * (1 - mu), mu, logs), jnp.exp(logs)


def _adam_covariance(
    k: Array, c: Array, scale: float | Array, mu: float | Array, logs: Array
) -> Array:
    root = jnp.sqrt(scale) * jnp.exp(-logs / 4)  # the square root of the diagonal rate
    a, vectors = jnp.linalg.eigh(root[:, None] * k * root)
    basis = root[:, None] * vectors
    return basis @ (basis.T @ c @ basis / steady_state.covariance_divisor(a, mu)) @ basis.T


def _adam_fixed_point(
    k: Array, c: Array, scale: float | Array, mu: float | Array
) -> tuple[Array, Array]:
    """Iterate on ``log v``, damped; the damping adapts, as the map steepens near the limit."""

    def gap(logs: Array) -> Array:
        root = jnp.sqrt(scale) * jnp.exp(-logs / 4)
        largest = jnp.linalg.eigvalsh(root[:, None] * k * root)[-1]
        s = _adam_covariance(k, c, scale, mu, logs)
        wanted = jnp.log(jnp.abs(jnp.diag(k @ s @ k + c)))
        # Beyond the limit there is no covariance: a larger v is wanted, whatever its value.
        return jnp.where(largest < 2 * (1 + mu), wanted - logs, jnp.log(4.0))

    def unfinished(carry: tuple[PyTree, ...]) -> Array:
        _, move, _, sweep = carry
        return (jnp.max(jnp.abs(move)) > 10 * jnp.finfo(k.dtype).eps) & (sweep < _SWEEPS)

    def sweep(carry: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        logs, move, damping, count = carry
        proposal = logs + damping * move
        following = gap(proposal)
        overshot = jnp.vdot(following, move) < -0.5 * jnp.vdot(move, move)
        logs, move = jax.tree.map(
            lambda old, new: jnp.where(overshot, old, new), (logs, move), (proposal, following)
        )
        damping = jnp.where(overshot, damping / 2, jnp.minimum(1.2 * damping, 1.0))
        return logs, move, damping, count + 1

    logs = jnp.log(jnp.diag(c))
    start = (logs, gap(logs), jnp.asarray(0.5, logs.dtype), 0)
    logs, move, _, _ = jax.lax.while_loop(unfinished, sweep, start)
    return logs, jnp.max(jnp.abs(move))
