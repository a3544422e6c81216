r"""Cross-validation loss of Gaussian kernel ridge, and its gradient, in closed form.

k(x, x') = exp(-1/2 sum_j e^{rho_j} (x_j - x'_j)^2),   (K + e^a I) c = y on training rows

With ``G`` the slope of the loss in the predictions ``K c`` and ``v = (K + e^a I)^{-1} K G``, the
slope in K is ``(G - v) c^T``, and in ``e^a`` it is ``-v . c``.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bilevel.sklearn.losses.folds import Folds
from bilevel.sklearn.search.descent import Evaluation


def kernel_matrix(rho: np.ndarray, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Return the kernel, ``[n, m]``, for rows ``A [n, d]`` and ``B [m, d]``."""
    scaled = np.exp(rho / 2)
    A, B = A * scaled, B * scaled
    squares = np.sum(A**2, 1)[:, None] + np.sum(B**2, 1) - 2 * A @ B.T
    return np.exp(-np.maximum(squares, 0) / 2)


class KernelLoss(NamedTuple):
    """The loss at ``theta [1 + d]``: ``a``, then ``rho``; rows ``X [n, d]``, ``target [n, T]``."""

    X: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    folds: Folds

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and dual coefficients ``[F, n, T]``; costs n^3 a fold."""
        alpha, K = float(np.exp(theta[0])), kernel_matrix(theta[1:], self.X, self.X)
        share = self.folds.share
        losses, dual = np.zeros(len(share)), np.zeros((len(share), *self.target.shape))
        slope, by_alpha, worst = np.zeros_like(K), 0.0, 0.0
        for k in range(len(share)):
            if share[k] == 0 and k < len(share) - 1:
                continue
            # Rows of weight 0 have coefficient 0; weights s stand for noise alpha / s.
            root = np.sqrt(self.folds.train[k] * self.weight)[:, None]
            matrix = root * K * root.T + alpha * np.eye(len(K))
            try:
                factor = cho_factor(matrix, lower=True, check_finite=False)
            except np.linalg.LinAlgError:
                losses[k], slope = np.nan, np.full_like(slope, np.nan)
                continue
            right = root * self.target
            scaled = cho_solve(factor, right, check_finite=False)
            dual[k] = root * scaled
            held = (self.folds.held[k] * self.weight)[:, None]
            held = held / (held.sum() or 1.0) / self.target.shape[1]
            error = K @ dual[k] - self.target
            losses[k] = np.sum(held * error**2)
            left = np.linalg.norm(matrix @ scaled - right)
            worst = max(worst, float(left / max(np.linalg.norm(right), 1e-300)))
            if share[k] > 0:
                G = 2 * held * error
                v = cho_solve(factor, root * (K @ G), check_finite=False)
                by_alpha -= share[k] * float(np.sum(v * scaled))
                slope += share[k] * (G - root * v) @ dual[k].T
        pairs, scaled = slope * K, self.X * np.exp(theta[1:] / 2)
        both = (pairs.sum(0) + pairs.sum(1)) @ scaled**2
        by_rho = -(both - 2 * np.sum(scaled * (pairs @ scaled), 0)) / 2
        grad = np.append(alpha * by_alpha, by_rho)
        return Evaluation(float(share @ losses), grad, losses, dual, worst, worst, share)
