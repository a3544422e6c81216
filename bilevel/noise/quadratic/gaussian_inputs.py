"""Linear regression on Gaussian inputs, and noise that is proportional to the Hessian.

Here the covariance of minibatch noise is known in closed form, so that the stationary state and
its limit are too; batches are independent draws from the population.

Source: Ziyin, Liu, Mori, Ueda, "Strength of minibatch noise in SGD", arXiv:2102.05375 (Lemma 1,
Theorem 2, Theorem 5, tail index).
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.utils import require_momentum, require_positive_int, require_positive_scalars

_BISECTIONS = 200  # enough for any float64 to converge


def covariance(
    inputs: ArrayLike,
    label_variance: float | Array,
    step_size: float | Array,
    batch_size: int,
    momentum: float | Array = 0.0,
) -> Array:
    r"""Return the stationary covariance ``[d, d]`` of regression with inputs ``N(0, A)``.

    The noise is ``C = (A S A + Tr[A S] A + s^2 A) / B``, and ``S = (s^2/B) (1 + kappa/B) lam G^-1``
    with ``G = 2 (1-mu) - ((1-mu)/(1+mu) + 1/B) lam A``, ``kappa = tau / (1 - tau/B)``,
    ``tau = Tr[lam A G^-1]``. It diverges at ``tau = B``.

    Parameters
    ----------
    inputs : ``A [d, d]``, second moment of the inputs; the loss is ``(x.w - y)^2 / 2``.
    label_variance : ``s^2``.
    step_size : ``lam``, below :func:`step_limit`.
    batch_size : ``B``.
    momentum : heavy ball, in [0, 1).

    Raises
    ------
    ValueError : a step size beyond the limit, a singular or indefinite ``A``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> noise.gaussian_inputs.covariance(jnp.eye(1), 1.0, 0.5, 2).round(4)
    Array([[0.25]], dtype=float32)
    """
    owner = "gaussian_inputs.covariance"
    a, vectors, mu = _modes(owner, inputs, batch_size, momentum)
    require_positive_scalars(owner, step_size=step_size, label_variance=label_variance)
    limit = _limit(a, batch_size, mu)
    checks.below_limit(owner, step_size, limit, "the step size")
    g = _g(a, step_size, batch_size, mu)
    tau = jnp.sum(step_size * a / g)
    scale = label_variance / batch_size * step_size / (1 - tau / batch_size)
    return (vectors * (scale / g)) @ vectors.T


def step_limit(inputs: ArrayLike, batch_size: int, momentum: float | Array = 0.0) -> Array:
    """Return exact mean-square stability limit of the step size: the root of ``tau = B``; ``()``.

    In one dimension ``lam / (1-mu) a ((1-mu)/(1+mu) + 2/B) = 2``: at small batches momentum does
    not raise the limit of ``lam / (1-mu)``.

    Raises
    ------
    ValueError : a singular or indefinite ``A``, momentum outside [0, 1).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> noise.gaussian_inputs.step_limit(jnp.eye(1), 2).round(4)
    Array(1., dtype=float32)
    """
    a, _, mu = _modes("gaussian_inputs.step_limit", inputs, batch_size, momentum)
    return _limit(a, batch_size, mu)


def hessian_noise_covariance(
    hessian: ArrayLike,
    scale: float | Array,
    step_size: float | Array,
    batch_size: int,
    momentum: float | Array = 0.0,
) -> Array:
    """Return the stationary covariance ``[d, d]`` when ``C = scale K / B``.

    It is ``(scale lam / (B (1-mu))) [2 - lam K / (1+mu)]^-1``.

    For a squared loss whose minimum has the value ``L0 > 0``, ``scale = 2 L0`` to leading order:
    the noise is proportional to the loss, and vanishes where the model interpolates.

    Raises
    ------
    ValueError : a step size beyond ``2 (1 + mu) / k_max``, a singular or indefinite Hessian.
    """
    owner = "gaussian_inputs.hessian_noise_covariance"
    k, vectors, mu = _modes(owner, hessian, batch_size, momentum)
    require_positive_scalars(owner, step_size=step_size, scale=scale)
    checks.below_limit(owner, step_size, 2 * (1 + mu) / k[-1], "the step size")
    factor = scale * step_size / (batch_size * (1 - mu))
    return (vectors * (factor / (2 - step_size * k / (1 + mu)))) @ vectors.T


def tail_index(curvature: float | Array, step_size: float | Array, batch_size: int) -> Array:
    """Return exponent ``beta = 2 B / (lam a) - B`` of the power-law tail in one dimension; ``()``.

    Moments of order ``beta`` and above are infinite: 2 is the limit of :func:`step_limit`.
    """
    require_positive_scalars("gaussian_inputs.tail_index", curvature=curvature, step_size=step_size)
    return jnp.asarray(2 * batch_size / (step_size * curvature) - batch_size)


def _modes(
    owner: str, matrix: ArrayLike, batch_size: int, momentum: float | Array
) -> tuple[Array, Array, float | Array]:
    require_positive_int(owner, "batch_size", batch_size)
    values, vectors = jnp.linalg.eigh(checks.require_hessian(owner, matrix))
    return values, vectors, require_momentum(owner, momentum)


def _g(a: Array, step_size: float | Array, batch_size: int, mu: float | Array) -> Array:
    return 2 * (1 - mu) - ((1 - mu) / (1 + mu) + 1 / batch_size) * step_size * a


def _limit(a: Array, batch_size: int, mu: float | Array) -> Array:
    """Return the one root of ``tau = B``: ``tau`` rises from 0 to infinity on the interval."""

    def halve(_: int, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = (low + high) / 2
        tau = jnp.sum(middle * a / _g(a, middle, batch_size, mu))
        unstable = tau > batch_size
        return jnp.where(unstable, low, middle), jnp.where(unstable, middle, high)

    pole = 2 * (1 - mu) / (((1 - mu) / (1 + mu) + 1 / batch_size) * a[-1])
    return jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(pole), pole))[0]
