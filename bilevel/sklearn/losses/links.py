r"""Losses of generalised linear models as functions of scores z, with derivatives: the one table.

    logistic       log(1 + e^z) - y z
    multinomial    log sum_k e^{z_k} - y . z
    squared        (z - y)^2 / 2
    Tweedie        half the deviance of power p at the mean e^z
    Huber          s + r^2 / s where |r| < eps s, else s + 2 eps |r| - eps^2 s;  r = y - z

Tweedie deviances (Jorgensen, 1987): p = 1 is Poisson's, 2 Gamma's, and in between convex in z. The
scale s of Huber's loss is a second score, which has no columns (Owen, 2007: jointly convex).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, xlogy

_RARE = 1e-3  # least share of a class at the start


class Link(NamedTuple):
    """A loss of scores ``z [n, F, T]`` and targets ``y [n, 1, T]``, and its derivatives.

    ``value(z, y) [n, F]``; ``derive(z, y)``: its slope in z, and an array ``c`` that its Hessian is
    made of; ``curved(c, t)``: that Hessian times t; ``diagonal(c)``: its diagonal, averaged over
    outputs, ``[n, F]``; ``third(z, y, N)``: the slope in z of ``sum_ab N_ab Hessian_ab``, for
    ``z [n, T]``, ``N [n, T, T]``; ``start(mean)``: scores of the constant model for the mean target
    ``[T]``. The last ``plain`` outputs have an intercept and no columns; ``profile(z, y, s)`` is
    their best value for the others and weights ``s [n, F]``, ``[F, plain]``. ``bound(z, y)``, where
    the curvature may vanish on the way: that of a function above the loss, as ``c``.
    """

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    derive: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    curved: Callable[[np.ndarray, np.ndarray], np.ndarray]
    diagonal: Callable[[np.ndarray], np.ndarray]
    third: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    start: Callable[[np.ndarray], np.ndarray] = np.zeros_like
    plain: int = 0
    profile: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    bound: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


def _sum_outputs(z: np.ndarray) -> np.ndarray:
    """Sum over the last axis, which is short: a product is ten times as fast as a reduction."""
    return z[:, :, 0] if z.shape[2] == 1 else z @ np.ones(z.shape[2], z.dtype)


def _find_top(z: np.ndarray) -> np.ndarray:
    """Return the largest entry of the last axis, which is short."""
    if z.shape[2] > 32:
        return z.max(2)
    top = z[:, :, 0]
    for k in range(1, z.shape[2]):
        top = np.maximum(top, z[:, :, k])
    return top


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - _find_top(z)[:, :, None])
    e /= _sum_outputs(e)[:, :, None]
    return e


def _log_sum_exp(z: np.ndarray) -> np.ndarray:
    top = _find_top(z)
    return np.log(_sum_outputs(np.exp(z - top[:, :, None]))) + top


def _multinomial_derive(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    m = _softmax(z)
    return m - y, m


def _multinomial_curved(m: np.ndarray, t: np.ndarray) -> np.ndarray:
    image = m * t
    image -= m * _sum_outputs(image)[:, :, None]
    return image


def _multinomial_third(z: np.ndarray, y: np.ndarray, N: np.ndarray) -> np.ndarray:
    m = _softmax(z[:, None])
    inside = np.einsum("naa->na", N) - 2 * np.einsum("nab,nb->na", N, m[:, 0])
    return _multinomial_curved(m, inside[:, None])[:, 0]


def _logistic_value(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    # log(1 + e^z) as NumPy's logaddexp has it, at half the price.
    return _sum_outputs(np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - y * z)


def _logistic_start(mean: np.ndarray) -> np.ndarray:
    mean = np.clip(mean, _RARE, 1 - _RARE)
    return np.log(mean) - np.log1p(-mean)


def _multinomial_start(mean: np.ndarray) -> np.ndarray:
    z = np.log(np.maximum(mean, _RARE))
    return z - z.mean()


def _logistic_derive(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    m = expit(z)
    return m - y, m * (1 - m)


def _logistic_third(z: np.ndarray, y: np.ndarray, N: np.ndarray) -> np.ndarray:
    m = expit(z)
    return N[:, 0] * m * (1 - m) * (1 - 2 * m)


def _multiply(c: np.ndarray, t: np.ndarray) -> np.ndarray:
    return c * t


def _average(c: np.ndarray) -> np.ndarray:
    return _sum_outputs(c) / c.shape[2]


LOGISTIC = Link(
    _logistic_value,
    _logistic_derive,
    _multiply,
    _average,
    _logistic_third,
    _logistic_start,
)
MULTINOMIAL = Link(
    lambda z, y: _log_sum_exp(z) - _sum_outputs(y * z),
    _multinomial_derive,
    _multinomial_curved,
    lambda m: _average(m * (1 - m)),
    _multinomial_third,
    _multinomial_start,
)
SQUARED = Link(
    lambda z, y: _sum_outputs((z - y) ** 2) / 2,
    lambda z, y: (z - y, np.ones_like(z)),
    _multiply,
    _average,
    lambda z, y, N: np.zeros_like(z),
    np.array,
)


def make_tweedie(power: float) -> Link:
    """Return half the deviance of Tweedie's law of ``power`` 1 to 2, at the mean ``e^z``."""
    a, b = 1 - power, 2 - power

    def value(z: np.ndarray, y: np.ndarray) -> np.ndarray:
        # y^(2-p) / ((1-p)(2-p)) - y e^((1-p) z) / (1-p) + e^((2-p) z) / (2-p), and its limits.
        if power == 1:
            return _sum_outputs(xlogy(y, y) - y * z - y + _exp(z))
        if power == 2:
            return _sum_outputs(y * _exp(-z) - 1 - np.log(y) + z)
        return _sum_outputs(y**b / (a * b) - y * _exp(a * z) / a + _exp(b * z) / b)

    def derive(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        top, low = _exp(b * z), y * _exp(a * z)
        return top - low, b * top - a * low

    def third(z: np.ndarray, y: np.ndarray, N: np.ndarray) -> np.ndarray:
        return N[:, 0] * (b**2 * _exp(b * z) - a**2 * y * _exp(a * z))

    def start(mean: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(mean, 1e-100))

    return Link(value, derive, _multiply, _average, third, start)


_LEAST = 1e-6  # residual, in the unit of the targets, that keeps Huber's scale positive


def _exp(x: np.ndarray) -> np.ndarray:
    """Return the exponential, of at most 300: a trial beyond is far too large, and stays finite."""
    return np.exp(np.minimum(x, 300.0))


def make_huber(epsilon: float) -> Link:
    """Return Huber's loss of location and scale, of targets about 0 whose scale is about 1.

    Beside the residuals each row has one of 1e-6, so that the scale of a perfect fit is not 0.
    """

    def value(z: np.ndarray, y: np.ndarray) -> np.ndarray:
        scale, r = z[:, :, 1], np.abs(y[:, :, 0] - z[:, :, 0])
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = scale + r**2 / scale
            outside = scale + epsilon * (2 * r - epsilon * scale)
            loss = np.where(r < epsilon * scale, inside, outside) + _LEAST**2 / scale
        return np.where(scale > 0, loss, np.inf)

    def derive(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = z[:, :, 1]
        rho = (y[:, :, 0] - z[:, :, 0]) / scale
        near = np.clip(rho, -epsilon, epsilon)
        root = np.where(np.abs(rho) < epsilon, np.sqrt(2 / scale), 0)
        least = _LEAST / scale
        slope = np.stack([-2 * near, 1 - near**2 - least**2], 2)
        return slope, np.stack([root, root * rho, np.sqrt(2 / scale) * least], 2)

    def bound(z: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Of iteratively reweighted least squares: rows outside have a curvature too.
        scale = z[:, :, 1]
        rho = (y[:, :, 0] - z[:, :, 0]) / scale
        root = np.sqrt(2 / scale * np.minimum(1, epsilon / np.maximum(np.abs(rho), epsilon)))
        across = np.where(np.abs(rho) < epsilon, root * rho, 0)
        return np.stack([root, across, np.sqrt(2 / scale) * _LEAST / scale], 2)

    def curved(c: np.ndarray, t: np.ndarray) -> np.ndarray:
        image = c[:, :, :2] * _sum_outputs(c[:, :, :2] * t)[:, :, None]
        image[:, :, 1] += c[:, :, 2] ** 2 * t[:, :, 1]
        return image

    def third(z: np.ndarray, y: np.ndarray, N: np.ndarray) -> np.ndarray:
        # The Hessian is (2 / s) u u^T, u = (1, rho), where rho = (y - z) / s is inside.
        scale, rho = z[:, 1], (y[:, 0] - z[:, 0]) / z[:, 1]
        cross, own = N[:, 0, 1] + N[:, 1, 0], N[:, 1, 1]
        by_z = -cross - 2 * own * rho
        by_scale = -N[:, 0, 0] - 2 * cross * rho - 3 * own * rho**2
        unit = np.where(np.abs(rho) < epsilon, 2 / scale**2, 0)
        least = -6 * own * _LEAST**2 / scale**4
        return np.stack([unit * by_z, unit * by_scale + least], 1)

    def profile(z: np.ndarray, y: np.ndarray, s: np.ndarray) -> np.ndarray:
        # With the k smallest residuals inside: scale^2 = sum of their squares / (1 - eps^2 others).
        r = np.abs(y[:, :, 0] - z[:, :, 0])
        order = np.argsort(r, 0)
        r, s = np.take_along_axis(r, order, 0), np.take_along_axis(s, order, 0)
        inside, others = np.cumsum(s * r**2, 0) + _LEAST**2, s.sum(0) - np.cumsum(s, 0)
        room = s.sum(0) - epsilon**2 * others
        scale = np.sqrt(inside / np.where(room > 0, room, np.nan))
        fits = epsilon * scale < np.vstack([r[1:], np.full((1, r.shape[1]), np.inf)])
        return np.take_along_axis(scale, np.argmax(fits, 0)[None], 0).T

    def diagonal(c: np.ndarray) -> np.ndarray:
        return _sum_outputs(c**2) / 2

    start = np.array([0.0, 1.0])
    return Link(value, derive, curved, diagonal, third, lambda _: start, 1, profile, bound)
