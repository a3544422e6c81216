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
from bilevel.planning.stationary import JointBlocks, Noise, StepResponse


class Run:
    """All runs at one step size and batch size: what does not depend on the lengths, once."""

    period = 1  # steps of which windows are multiples
    doubt = noise_doubt = 0.0  # exact moments

    def __init__(
        self,
        local: Local,
        noise: Noise,
        response: StepResponse,
        factor: float,
        *,
        cross: bool = False,
    ) -> None:
        """``factor``: the noise fraction of a batch; ``cross``: ``Forward(..., cross=True)``."""
        self.local, self.noisy, self.cross = local, factor > 0, cross
        self.earliest = int(np.ceil(local.delay / response.pace))
        self.maps, self.powers = response.maps, Powers(response.maps, response.beside)
        self.moments = noise.moments(response, factor)
        read = self.moments.read
        self.nonlinearity = measure_nonlinearity(local, read)
        self._shift = self.shift_mean(read)
        # Second moments forget the start more slowly than the mean does: by this factor per step.
        self.lag = measure_lag(response, factor * noise.curvature_variance)
        self.lagging = Powers(self.lag * response.maps, self.lag * response.beside)

    def shift_mean(self, moments: JointBlocks) -> np.ndarray:
        """Return what ``moments`` of iterates add to the mean off quadratic losses, ``[p]``."""
        local, (xx, xd, _) = self.local, moments
        return -np.sum(local.shift * xx, (1, 2)) / 2 - np.sum(local.cubic * xd, (1, 2))

    def average(self, window: int) -> JointBlocks:
        """Return ``V``, the covariance of the mean of ``window`` stationary iterates."""
        (xx, xd, dd), N, (g, G) = self.moments, window, self.powers.sums(window).weighted
        n, g = len(g), g[:, None, 0]  # row 0: an iterate later, in terms of all slots now
        coupled = (self.local.coupling[..., None] * G[:, :, 0]).reshape(-1, n, G[0, :, 0].size)

        def own(P: np.ndarray) -> np.ndarray:
            """Return ``E[(sum of later iterates) z_0^T]``, the coupling left out; ``[n, n]``."""
            return np.sum(g * P[..., 0], -1)

        def across(P: np.ndarray) -> np.ndarray:
            """Return what the coupling adds for the derivative, from ``P = E[u z^T]``."""
            return coupled @ np.swapaxes(P[..., 0], -1, -2).reshape(*P.shape[:-4], -1, n)

        now, turned = self.moments.read, xd.transpose(0, 2, 1, 4, 3)
        first, third = own(xx), own(dd) + across(xd)
        second = own(xd) + (own(turned) + across(xx)).transpose(0, 2, 1)
        return JointBlocks(
            (first + first.T - N * now.xx) / N**2,
            (second - N * now.xd) / N**2,
            (third + third.transpose(0, 2, 1) - N * now.dd) / N**2,
        )

    def _average(self, window: int) -> JointBlocks:
        V = self.average(window)
        # Cross-sampled, the other chain shares no minibatch.
        return V._replace(xd=0 * V.xd) if self.cross else V

    def stationary_error(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bias and variance of the mean of ``window`` stationary iterates, ``[p]``."""
        V = self._average(window)
        second, variance, products = read_hypergradient(self.local, V)
        return self._shift + second, variance + products

    def product_share(self, window: int) -> float:
        """Return the share of the variance that products of noise have."""
        _, variance, products = read_hypergradient(self.local, self._average(window))
        return float(np.sum(products) / max(np.sum(variance + products), 1e-300))

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
        f, F = self.lagging.sums(wait + 1).power @ Pair(*(x / window for x in sums.plain))
        # The first column: with momentum, a run begins without velocity, and so does a derivative.
        begun = np.linalg.matrix_power(self.lag * self.maps, start - self.earliest)[:, :, 0]
        u0 = begun * local.start[:, None]
        u, forgotten = np.sum(f[:, 0] * u0, -1), -f[:, 0, 0] * local.derivative
        coupled = np.sum(local.coupling * np.sum(F[:, :, 0] * u0, -1), -1)
        terms = [local.slope * u, forgotten * local.gradient, coupled * local.gradient]
        terms += [(local.slope_derivative @ u) * u / 2, (forgotten + coupled) * (local.hessian @ u)]
        return np.stack(terms)


def read_hypergradient(local: Local, V: JointBlocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what noise of covariance ``V`` adds to the mean of a hypergradient, and variances.

    ``[p]`` each. The first variance is that of the terms of first order, the other that of the
    products of second order as if the noise were normal: ``tr(W V W V) / 2`` with ``W =
    [[slope_derivative, Q], [Q, 0]]``.
    """
    ell, Q, S, slope = local.gradient, local.hessian, local.slope_derivative, local.slope
    second = np.sum(S * V.xx, (1, 2)) / 2 + np.sum(Q * V.xd, (1, 2))
    variance = np.einsum("pa,ab,pb->p", slope, V.xx, slope)
    variance += 2 * np.einsum("pa,pab,b->p", slope, V.xd, ell)
    variance += np.einsum("a,pab,b->p", ell, V.dd, ell)
    uu, ud, dd = S @ V.xx + Q @ V.xd.transpose(0, 2, 1), S @ V.xd + Q @ V.dd, Q @ V.xd
    products = np.einsum("pab,pba->p", uu, uu) + np.einsum("pab,pba->p", dd, dd)
    products += 2 * np.einsum("pab,ba->p", ud, Q @ V.xx)
    return second, np.maximum(variance, 0), np.maximum(products / 2, 0)


def measure_lag(response: StepResponse, variance: np.ndarray) -> float:
    """Return by which factor per step second moments forget the start more slowly than the mean.

    ``variance [n]`` of the curvature of a batch along eigenvectors, which feeds the noise.
    """
    maps, s = response.maps, len(response.gain)
    pairs = np.einsum("aij,akl->aikjl", maps, maps).reshape(-1, s * s, s * s)
    fed = np.zeros((s * s, s * s))
    fed[:, 0] = np.outer(response.gain, response.gain).ravel()
    radius = np.abs(np.linalg.eigvals(pairs + variance[:, None, None] * fed)).max()
    mean = np.abs(np.linalg.eigvals(maps)).max() ** 2
    return float(np.sqrt(max(radius / max(mean, 1e-2), 1)))


def measure_nonlinearity(local: Local, moments: JointBlocks) -> float:
    """Return the distance of the stationary mean from the solution over the spread around it.

    Norms are the Hessian's. 0 on a quadratic loss; where it is not small, linear theory has lost
    the second moments.
    """
    shift = np.tensordot(local.third, moments.xx, 2) / 2
    size = np.sum(local.h * np.diagonal(moments.xx))
    return float(np.sqrt(np.sum(shift**2 / local.h) / size)) if size > 0 else 0.0
