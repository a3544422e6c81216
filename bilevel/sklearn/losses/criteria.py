r"""Outer losses for ridge that need no folds: leave-one-out, generalised CV, SURE.

With ``P = (X^T S X + diag(penalty))^{-1}``, rows about their weighted means, S the weights, and
``h_i = s_i x_i^T P x_i + s_i / sum s`` the leverage of row i (its last term: the intercept),

    leave-one-out   sum_i s_i (r_i / (1 - h_i))^2 / sum s
    GCV             n sum_i s_i r_i^2 / (n - sum_i h_i)^2
    SURE            sum_i s_i r_i^2 / n + 2 sigma^2 sum_i h_i / n - sigma^2

Allen, Technometrics 1974; Golub, Heath, Wahba, Technometrics 1979; Stein, Annals of Statistics
1981. Leave-one-out is exact. All are JAX functions of log-penalties, smooth in them.
"""

import jax.numpy as jnp
from jax import Array


def _fit(
    log_penalty: Array, X: Array, y: Array, weight: Array, intercept: float
) -> tuple[Array, Array, Array, Array]:
    """Return residuals ``[n, T]``, leverages, which rows count ``[n]``, coefficients ``[d, T]``."""
    total = jnp.sum(weight)
    centred = X - intercept * (weight @ X) / total
    target = y - intercept * (weight @ y) / total
    weighted = weight[:, None] * centred
    inverse = jnp.linalg.inv(weighted.T @ centred + jnp.diag(jnp.exp(log_penalty)))
    w = inverse @ (weighted.T @ target)
    residual = target - centred @ w
    leverage = jnp.sum((centred @ inverse) * weighted, 1) + intercept * weight / total
    return residual, leverage, weight > 0, w


def leave_one_out(
    log_penalty: Array, X: Array, y: Array, weight: Array, intercept: float = 1.0
) -> Array:
    """Return the mean squared error of each row by the fit to all others, exactly; ``()``.

    Parameters
    ----------
    log_penalty : ``[d]``, natural logarithms, of penalties that belong to the sum of squares.
    X, y, weight : ``[n, d]``, ``[n, T]``, ``[n]``; a row of weight 0 does not count.
    intercept : 1 with an unpenalised intercept, 0 without.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> X, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [2.0]])
    >>> leave_one_out(jnp.array([-20.0]), X, y, jnp.ones(3)).round(4)
    Array(0., dtype=float32)
    """
    residual, leverage, _, _ = _fit(log_penalty, X, y, weight, intercept)
    left = jnp.mean((residual / (1 - leverage)[:, None]) ** 2, 1)
    return weight @ left / jnp.sum(weight)


def compute_gcv(
    log_penalty: Array, X: Array, y: Array, weight: Array, intercept: float = 1.0
) -> Array:
    """Return generalised cross-validation, ``()``; arguments as for :func:`leave_one_out`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> X, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [2.0]])
    >>> compute_gcv(jnp.array([-20.0]), X, y, jnp.ones(3)).round(4)
    Array(0., dtype=float32)
    """
    residual, leverage, counts, _ = _fit(log_penalty, X, y, weight, intercept)
    n = jnp.sum(counts)
    return n * (weight @ jnp.mean(residual**2, 1)) / (n - jnp.sum(leverage)) ** 2


def compute_sure(
    log_penalty: Array,
    X: Array,
    y: Array,
    weight: Array,
    intercept: float = 1.0,
    *,
    noise_variance: float,
) -> Array:
    """Return Stein's unbiased estimate of the mean squared error of the fitted values, ``()``.

    ``noise_variance`` of a row of weight 1; other arguments as for :func:`leave_one_out`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> X, y = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [2.0]])
    >>> round(float(compute_sure(jnp.array([-20.0]), X, y, jnp.ones(3), noise_variance=0.3)), 4)
    0.1
    """
    residual, leverage, counts, _ = _fit(log_penalty, X, y, weight, intercept)
    n = jnp.sum(counts)
    fit = weight @ jnp.mean(residual**2, 1) / n
    return fit + noise_variance * (2 * jnp.sum(leverage) / n - 1)
