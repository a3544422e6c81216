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

    def __init__(self, local: Local, noise: Noise, step_size: float, factor: float) -> None:
        """``factor`` is the noise fraction of a batch."""
        self.local, self.step_size, self.noisy = local, step_size, factor > 0
        self.earliest = int(np.ceil(local.delay / step_size))
        xx, xd, dd = moments = noise.moments(step_size, factor)
        self.nonlinearity = measure_nonlinearity(local, moments)
        self.mu = 1 - step_size * local.h
        self.powers = Powers(self.mu)
        ell, Q, slope, T = local.gradient, local.hessian, local.slope, step_size * local.coupling
        # Rows of P w, w = (slope_j, l), for the variance w.V w.
        y_x = slope @ xx + xd @ ell
        y_d = np.einsum("pba,pb->pa", xd, slope) + dd @ ell
        self._diagonal = slope * y_x + ell * y_d
        self._beside = -ell[:, None] * T * y_x[:, None, :]
        self._once = np.sum(self._diagonal, 1)
        # The products of second order, <slope_derivative, V_xx> / 2 + <Q, V_xd>, by rows of G in
        # the same way.
        self._second = np.sum(local.slope_derivative * xx, 2) + np.einsum("ab,pab->pa", Q, xd)
        self._second += np.einsum("ab,pab->pb", Q, xd)
        self._second_beside = -T * (xx @ Q).T
        self._second_once = np.sum(local.slope_derivative * xx, (1, 2)) / 2 + np.sum(Q * xd, (1, 2))
        self._shift = -np.sum(local.shift * xx, (1, 2)) / 2 - np.sum(local.cubic * xd, (1, 2))
        # Second moments forget the start more slowly than the mean does: by this factor per step.
        both = self.mu**2 + factor * step_size**2 * noise.spread
        self.lag = float(np.sqrt(max(np.max(both) / max(np.max(self.mu**2), 1e-2), 1)))

    def stationary_error(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bias and variance of the mean of ``window`` stationary iterates, ``[p]``."""
        N, (g, G) = window, self.powers.sums(window).weighted
        variance = 2 * (self._diagonal @ g + np.sum(self._beside * G, (1, 2))) - N * self._once
        second = self._second @ g + np.sum(self._second_beside * G, (1, 2)) - N * self._second_once
        return self._shift + second / N**2, np.maximum(variance, 0) / N**2

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


def measure_nonlinearity(local: Local, moments: JointBlocks) -> float:
    """Return the distance of the stationary mean from the solution over the spread around it.

    Norms are the Hessian's. 0 on a quadratic loss; where it is not small, linear theory has lost
    the second moments.
    """
    shift = np.tensordot(local.third, moments.xx, 2) / 2
    size = np.sum(local.h * np.diagonal(moments.xx))
    return float(np.sqrt(np.sum(shift**2 / local.h) / size)) if size > 0 else 0.0
