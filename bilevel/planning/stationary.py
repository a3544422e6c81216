r"""Second moments of SGD and its derivative at stationarity, for many step sizes and batch sizes.

Around the solution ``u' = u - eta mean_batch (H_i u + g_i)`` and, for every hyperparameter, ``E_j'
= E_j - eta mean_batch (H_i E_j + T_ij u + e_ij)``. In the eigenbasis of the mean Hessian

    P = kappa o (source / eta^2 + p c(P)),   kappa_ab = eta / (h_a + h_b - eta h_a h_b)

with ``c(P) = mean H_i P H_i - H P H`` (:mod:`bilevel.noise.feedback`), block after block. A
hypergradient contracts x with one ``D_j`` at a time, so ``2 p + 1`` blocks of size n are enough.
In NumPy, so that a candidate compiles nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bilevel.linear import largest_without_compiling
from bilevel.planning.local import Examples


class JointBlocks(NamedTuple):
    """The blocks ``E u u^T [n, n]``, ``E u E_j^T`` and ``E E_j E_j^T``, ``[p, n, n]``."""

    xx: np.ndarray
    xd: np.ndarray
    dd: np.ndarray


@dataclass(frozen=True)
class Noise:
    """Minibatch noise around a solution; make it with :meth:`from_examples`.

    Parameters
    ----------
    examples : with means taken out, in the eigenbasis; ``h [n]``; ``coupling [p, n, n]``.
    feedback : ``c``, ``[n^2, n^2]``.
    """

    examples: Examples
    h: np.ndarray
    coupling: np.ndarray
    feedback: np.ndarray

    @classmethod
    def from_examples(cls, examples: Examples, h: np.ndarray) -> "Noise":
        """Take the means out, sum the examples up once."""
        H, g, e, T = examples
        apart = Examples(
            H - np.mean(H, 0),
            g - np.mean(g, 0),
            e - np.mean(e, 1, keepdims=True),
            T - np.mean(T, 1, keepdims=True),
        )
        m, n = g.shape
        flat = apart.hessian.reshape(m, n * n)
        pairs = (flat.T @ flat / m).reshape(n, n, n, n).transpose(0, 2, 1, 3)
        return cls(apart, h, np.mean(T, 1), pairs.reshape(n * n, n * n))

    @property
    def spread(self) -> np.ndarray:
        """Return the variance over examples of the curvature along eigenvectors, ``[n]``."""
        n = len(self.h)
        return self.feedback.reshape(n, n, n, n)[(np.arange(n),) * 4]

    def limit(self, factor: float) -> float:
        """Return the limit of the step size, as :func:`bilevel.noise.stability.step_limit` does."""
        both = (self.h[:, None] + self.h[None, :]).ravel()
        root, mean = np.sqrt(both), np.multiply.outer(self.h, self.h).ravel() / both

        def product(v: np.ndarray) -> np.ndarray:
            return mean * v + factor * (self.feedback @ (v / root)) / root

        # Positive semidefinite, its leading eigenvector too (Krein and Rutman): no share is missed.
        return 1 / largest_without_compiling(product, np.eye(len(self.h)).ravel())

    def moments(self, step_size: float, factor: float) -> JointBlocks:
        """Return the stationary moments, for a step size below the limit."""
        (H, g, e, T), h, C, eta = self.examples, self.h, self.coupling, step_size
        m, n = g.shape
        kappa = eta / (h[:, None] + h[None, :] - eta * np.multiply.outer(h, h))
        back = factor * self.feedback.T

        def stationary_moment(source: np.ndarray) -> np.ndarray:
            """Return the ``P`` with ``P = kappa o (source / eta^2 + p c(P))``."""
            alone = (kappa * source / eta**2).reshape(*source.shape[:-2], n * n)
            term = total = alone
            while np.abs(term).max(initial=0.0) > 1e-10 * np.abs(total).max(initial=0.0):
                term = kappa.ravel() * (term @ back)
                total = total + term
            return total.reshape(source.shape)

        def covary(X: np.ndarray, P: np.ndarray, Y: np.ndarray) -> np.ndarray:
            """Return ``mean X_i P Y_i^T`` where the means of X and Y are out: ``[n, n]``."""
            return np.tensordot(X @ P, Y, axes=((0, 2), (0, 2))) / m

        # Block after block, each the source of the next: E u u^T, then E u E_j^T, then E E_j E_j^T.
        noisy, left = eta**2 * factor, (1 - eta * h)[:, None]
        xx = stationary_moment(noisy * g.T @ g / m)
        shared = np.stack(
            [covary(H, xx, T_j) + g.T @ e_j / m for T_j, e_j in zip(T, e, strict=True)]
        )
        xd = stationary_moment(noisy * shared - eta * left * (xx @ C.transpose(0, 2, 1)))
        dx = xd.transpose(0, 2, 1)
        half = np.stack([covary(H, P, T_j) for P, T_j in zip(dx, T, strict=True)])
        half = noisy * half - eta * left * (dx @ C.transpose(0, 2, 1))
        own = np.stack(
            [covary(T_j, xx, T_j) + e_j.T @ e_j / m for T_j, e_j in zip(T, e, strict=True)]
        )
        own = noisy * own + eta**2 * C @ xx @ C.transpose(0, 2, 1)
        return JointBlocks(xx, xd, stationary_moment(half + half.transpose(0, 2, 1) + own))
