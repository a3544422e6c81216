r"""The error of one run, in closed form: any step size, late start and averaging window.

With ``A`` the mean step, ``P`` the stationary second moment and ``G = sum_{j<N} (N - j) A^j`` the
average of N iterates has covariance ``V = (G P + P G^T - N P) / N^2``, exactly: the next iterate
has the mean ``A z`` given the last, whatever the minibatches do. Its mean is what the start has
left, ``A^{q+1} (sum_{j<N} A^j) z_0 / N`` after q steps, plus the shift of a loss that is not
quadratic. The hypergradient is read off to second order (:mod:`bilevel.noise.hypergradient_error`,
:mod:`bilevel.noise.bias`).
"""

import numpy as np

from bilevel.planning.local import Local
from bilevel.planning.powers import Pair, Powers
from bilevel.planning.stationary import JointBlocks, Noise


class Run:
    """All runs at one step size and batch size: what does not depend on the lengths, once."""

    def __init__(
        self, local: Local, noise: Noise, step_size: float, factor: float, *, cross: bool = False
    ) -> None:
        """``factor``: the noise fraction of a batch; ``cross``: ``Forward(..., cross=True)``."""
        self.local, self.step_size, self.noisy, self.cross = local, step_size, factor > 0, cross
        self.earliest = int(np.ceil(local.delay / step_size))
        xx, xd, _ = self.moments = noise.moments(step_size, factor)
        self.nonlinearity = measure_nonlinearity(local, self.moments)
        self.mu = 1 - step_size * local.h
        self.powers = Powers(self.mu)
        self._shift = -np.sum(local.shift * xx, (1, 2)) / 2 - np.sum(local.cubic * xd, (1, 2))
        # Second moments forget the start more slowly than the mean does: by this factor per step.
        both = self.mu**2 + factor * step_size**2 * noise.spread
        self.lag = float(np.sqrt(max(np.max(both) / max(np.max(self.mu**2), 1e-2), 1)))

    def average(self, window: int) -> JointBlocks:
        """Return ``V``, the covariance of the mean of ``window`` stationary iterates."""
        (xx, xd, dd), N, (g, G) = self.moments, window, self.powers.sums(window).weighted
        beside = -self.step_size * self.local.coupling * G  # of E, in terms of u
        both = g[:, None] + g[None, :] - N
        across = beside @ xd
        return JointBlocks(
            both * xx / N**2,
            (both * xd + xx @ beside.transpose(0, 2, 1)) / N**2,
            (both * dd + across + across.transpose(0, 2, 1)) / N**2,
        )

    def stationary_error(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bias and variance of the mean of ``window`` stationary iterates, ``[p]``."""
        V = self.average(window)
        if self.cross:  # the other chain shares no minibatch
            V = V._replace(xd=0 * V.xd)
        second, variance = read_hypergradient(self.local, V)
        return self._shift + second, variance

    def transient(self, start: int, wait: int, window: int) -> np.ndarray:
        """Return what is left of the start in the average, ``[p]``.

        ``start`` from ``earliest`` on.
        """
        return np.sum(self._parts(start, wait, window), (0, 2))

    def left(self, start: int, wait: int, window: int) -> np.ndarray:
        """Return :meth:`transient` without any cancellation, which no plan should rely on."""
        return np.sum(np.abs(self._parts(start, wait, window)), (0, 2))

    def _parts(self, start: int, wait: int, window: int) -> np.ndarray:
        """Return the terms of :meth:`transient`, ``[5, p, n]``."""
        local, sums = self.local, self.powers.sums(window)
        f, F = self.powers.sums(wait + 1).power @ Pair(*(x / window for x in sums.plain))
        u0 = (self.lag * self.mu) ** (start - self.earliest) * local.start
        u, forgotten = f * u0, -f * local.derivative
        coupled = -self.step_size * (local.coupling * F) @ u0
        terms = [local.slope * u, forgotten * local.gradient, coupled * local.gradient]
        terms += [(local.slope_derivative @ u) * u / 2, (forgotten + coupled) * (local.hessian @ u)]
        return np.stack(terms) * self.lag**wait


def read_hypergradient(local: Local, V: JointBlocks) -> tuple[np.ndarray, np.ndarray]:
    """Return what noise of covariance ``V`` adds to the mean of a hypergradient, and its variance.

    ``[p]`` each. The variance is that of the terms of first order, and of those of second order as
    if the noise were normal: ``tr(W V W V) / 2`` with ``W = [[slope_derivative, Q], [Q, 0]]``.
    """
    ell, Q, S, slope = local.gradient, local.hessian, local.slope_derivative, local.slope
    second = np.sum(S * V.xx, (1, 2)) / 2 + np.sum(Q * V.xd, (1, 2))
    variance = np.einsum("pa,ab,pb->p", slope, V.xx, slope)
    variance += 2 * np.einsum("pa,pab,b->p", slope, V.xd, ell)
    variance += np.einsum("a,pab,b->p", ell, V.dd, ell)
    uu, ud, dd = S @ V.xx + Q @ V.xd.transpose(0, 2, 1), S @ V.xd + Q @ V.dd, Q @ V.xd
    products = np.einsum("pab,pba->p", uu, uu) + np.einsum("pab,pba->p", dd, dd)
    products += 2 * np.einsum("pab,ba->p", ud, Q @ V.xx)
    return second, np.maximum(variance, 0) + np.maximum(products / 2, 0)


def measure_nonlinearity(local: Local, moments: JointBlocks) -> float:
    """Return the distance of the stationary mean from the solution over the spread around it.

    Norms are the Hessian's. 0 on a quadratic loss; where it is not small, linear theory has lost
    the second moments.
    """
    shift = np.tensordot(local.third, moments.xx, 2) / 2
    size = np.sum(local.h * np.diagonal(moments.xx))
    return float(np.sqrt(np.sum(shift**2 / local.h) / size)) if size > 0 else 0.0
