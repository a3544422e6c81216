r"""The error of one run over shuffled epochs, read at the mean of its last epochs.

Epochs are independent affine maps ``y' = F y + f`` of the state between them; the steps of an epoch
have the mean ``G y + g`` (:mod:`bilevel.planning.orders`). In deviations from the stationary mean,
with bars for means over the orders, the mean over E epochs has the covariance V,

    P = E F P F^T + Cov f,    R = E G P G^T + Cov g,    Q = E F P G^T + Cov(f, g)
    E^2 V = E R + sum_{0 < j < E} (E - j) (Gbar Fbar^{j-1} Q + its transpose)

exactly, up to the number of orders. Derived for this project.
"""

import numpy as np

from bilevel.planning.orders import Epoch, Followed
from bilevel.planning.predict import Run, measure_nonlinearity, read_hypergradient
from bilevel.planning.stationary import JointBlocks


class ShuffledRun:
    """All runs over epochs at one step size and batch size.

    ``period`` is the number of steps of an epoch, ``doubt [p]`` the standard error of the bias and
    ``noise_doubt`` the relative one of the noise, both by the number of orders.
    """

    noisy = True

    def __init__(self, run: Run, epoch: Epoch) -> None:
        """``run`` has independent batches; it forgets the start as soon, and has the problem."""
        self.local, self.cross, self.earliest = run.local, run.cross, run.earliest
        self.transient, self.left, self.period = run.transient, run.left, epoch.steps
        F, f, rest, fixed = unfold_maps(epoch.end)
        G, g, others, shifted = unfold_maps(epoch.mean)
        self.end, self.whole = np.mean(F, 1), np.mean(G, 1)
        eye = np.eye(F.shape[-1])
        self._free = np.linalg.inv(eye - self.end)
        centre = _apply(self._free, fixed + np.mean(rest, 1))
        self.means = centre, _apply(self.whole, centre) + shifted + np.mean(others, 1)
        f, g = f + _apply(F, centre[:, None]), g + _apply(G, centre[:, None])
        rest, others = rest + _apply(F, centre[:, None]), others + _apply(G, centre[:, None])
        f, g, rest, others = (x - np.mean(x, 1, keepdims=True) for x in (f, g, rest, others))
        freed = f.shape[1] - epoch.sampled

        def covary(A: np.ndarray, a: np.ndarray, B: np.ndarray, b: np.ndarray) -> np.ndarray:
            """Return ``E A P B^T + Cov(a, b)``; ``[p, d, d]``."""
            moved = np.mean(A @ P[:, None] @ B.swapaxes(2, 3), 1)
            return moved + a.swapaxes(1, 2) @ b / freed

        P, grows = solve_moments(F, f.swapaxes(1, 2) @ f / freed)
        self.at_end = P
        self.within, self.across = covary(G, g, G, g), covary(F, f, G, g)
        # What an epoch adds to the mean of many, read as a hypergradient.
        unsure = np.std(self._long(rest, others), 1) / np.sqrt(freed) * epoch.sampled
        self.doubt = np.where(grows, np.inf, unsure)
        squares = np.sum(self._long(f, g) ** 2, 0)
        spread = np.std(squares) / max(np.mean(squares), 1e-300)
        self.noise_doubt = float(spread / np.sqrt(freed) / 2) * epoch.sampled
        second = self._blocks(covary(G, 0 * g, G, 0 * g))
        second = second._replace(
            xx=second.xx + epoch.within[0], xd=second.xd + epoch.within[1:]
        )  # the mean over the steps; the little that is left from epoch to epoch is read at means
        self.nonlinearity = measure_nonlinearity(run.local, second)
        self._shift = run.shift_mean(second)

    def _long(self, end: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Return by how much each order moves the hypergradient at a long average; ``[p, K]``."""
        moved = whole + _apply((self.whole @ self._free)[:, None], end)
        u, E = self._split(moved)
        return np.sum(self.local.slope[:, None] * u, -1) + E @ self.local.gradient

    def _split(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, half = len(self.local.h), z.shape[-1] // 2
        return z[..., :n], z[..., half : half + n]

    def _blocks(self, V: np.ndarray) -> JointBlocks:
        n, half = len(self.local.h), V.shape[-1] // 2
        x, d = slice(0, n), slice(half, half + n)
        return JointBlocks(V[0, x, x], V[:, x, d], V[:, d, d])

    def average(self, window: int) -> JointBlocks:
        """Return V, the covariance of the mean of whole epochs; of one step: at their ends."""
        count = window // self.period
        if count == 0:
            V = self.at_end
        else:
            N, A = count - 1, self.end
            power = np.linalg.matrix_power(A, N)
            eye = np.eye(A.shape[-1])
            # sum_{j<N} (N - j) A^j
            later = self._free @ (N * eye - A @ (eye - power) @ self._free)
            lagged = self.whole @ later @ self.across
            V = (count * self.within + lagged + lagged.swapaxes(1, 2)) / count**2
        blocks = self._blocks(V)
        # Cross-sampled, the other chain shares no minibatch.
        return blocks._replace(xd=0 * blocks.xd) if self.cross else blocks

    def _read(self, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return read_hypergradient(self.local, self.average(window))

    def stationary_error(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bias and variance of the mean of ``window`` steps, whole epochs; ``[p]``."""
        local, (u, E) = self.local, self._split(self.means[window >= self.period])
        second, variance, products = self._read(window)
        bias = np.sum(local.slope * u, 1) + E @ local.gradient + second + self._shift
        bias += np.einsum("pa,pab,pb->p", u, local.slope_derivative, u) / 2
        bias += np.einsum("pa,ab,pb->p", u, local.hessian, E)
        return bias, variance + products

    def product_share(self, window: int) -> float:
        """Return the share of the variance that products of noise have."""
        _, variance, products = self._read(window)
        return float(np.sum(products) / max(np.sum(variance + products), 1e-300))


def unfold_maps(found: Followed) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return ``F [p, K, 2 N, 2 N]`` and ``f, rest [p, K, 2 N]``, ``known``: iterate and ``E_j``."""
    size, maps = len(found.known), found.maps.transpose(2, 0, 1, 3)  # [1 + p, K, N, N + 1]
    own, beside = maps[0, ..., :size], maps[1:, ..., :size]
    F = np.zeros((*beside.shape[:2], 2 * size, 2 * size))
    F[:, :, :size, :size] = F[:, :, size:, size:] = own
    F[:, :, size:, :size] = beside

    def pair(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.broadcast_to(x[:1], x[1:].shape), x[1:]], -1)

    rest, known = np.moveaxis(found.rest, -1, 0), np.moveaxis(found.known, -1, 0)
    return F, pair(maps[..., size]), pair(rest), pair(known)


def solve_moments(F: np.ndarray, S: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the ``P`` with ``P = E F P F^T + S``, ``[p, d, d]``, and whether there is none."""
    half = F.shape[-1] // 2
    x, d = slice(0, half), slice(half, None)
    own, beside = F[0, :, x, x], F[:, :, d, x]
    flat = own.reshape(len(own), -1)
    pairs = (flat.T @ flat / len(own)).reshape((half,) * 4).transpose(0, 2, 1, 3)
    lifted = np.eye(half**2) - pairs.reshape(half**2, half**2)

    def settle(source: np.ndarray) -> np.ndarray:
        columns = source.reshape(-1, half**2).T
        return np.linalg.solve(lifted, columns).T.reshape(source.shape)

    # The answer to the source I is positive definite exactly where second moments converge.
    unit = settle(np.eye(half))
    P = np.zeros_like(S)
    if not np.linalg.eigvalsh((unit + unit.T) / 2)[0] > 0:
        return P, True
    P[:, x, x] = xx = settle(S[0, x, x])
    xd = settle(S[:, x, d] + np.mean(own @ xx @ beside.swapaxes(2, 3), 1))
    P[:, x, d], P[:, d, x] = xd, xd.swapaxes(1, 2)
    mixed = np.mean(beside @ xd[:, None] @ own.swapaxes(1, 2), 1)
    both = np.mean(beside @ xx @ beside.swapaxes(2, 3), 1)
    P[:, d, d] = settle(S[:, d, d] + mixed + mixed.swapaxes(1, 2) + both)
    return P, False


def _apply(A: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.einsum("...ab,...b->...a", A, x)
