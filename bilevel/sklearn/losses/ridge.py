r"""Cross-validation loss of ridge with many penalties, and its gradient, in closed form.

    w = (gram + D)^{-1} cross,   D = diag(e^theta),   loss = mean (x . w - y)^2 over held-out rows
    d loss / d theta_j = -e^{theta_j} w_j . v_j,      (gram + D) v = d loss / d w

Bengio 2000; one Cholesky factor per fold serves both. The factor is as exact however large the
columns are beside each other.
"""

import numpy as np
from scipy.linalg import cho_solve, get_lapack_funcs

from bilevel.sklearn.losses.fold_sums import FoldSums
from bilevel.sklearn.search.descent import Evaluation

(factorise,) = get_lapack_funcs(("potrf",), dtype=np.float64)


class RidgeLoss:
    """The mean over folds and targets; ``theta [d]`` penalise the sum of squares."""

    def __init__(self, sums: FoldSums) -> None:
        """Keep the second moments of the folds."""
        self.sums = sums

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits; not finite where a fold has no solution."""
        penalty = np.exp(theta)
        folds, d, targets = self.sums.cross.shape
        losses, params = np.zeros(folds), np.zeros((folds, d, targets))
        grad, residuals = np.zeros(d), np.zeros((folds, 2))
        for k, (gram, cross, held_gram, held_cross, square, share) in enumerate(
            zip(*self.sums, strict=True)
        ):
            if share == 0 and k < folds - 1:
                continue
            matrix = gram + np.diag(penalty)
            lower, failed = factorise(matrix, lower=1)
            if failed:
                losses[k], grad = np.nan, np.full(d, np.nan)
                continue
            w = cho_solve((lower, True), cross, check_finite=False)
            w += cho_solve((lower, True), cross - matrix @ w, check_finite=False)
            slope = held_gram @ w - held_cross
            v = cho_solve((lower, True), 2 * slope, check_finite=False)
            losses[k] = max(square + np.sum(w * (slope - held_cross)), 0)  # rounding
            grad = grad - share * penalty * np.sum(w * v, 1)
            params[k] = w
            residuals[k] = _relative(matrix @ w, cross), _relative(matrix @ v, 2 * slope)
        inner, linear = residuals.max(0)
        return Evaluation(
            float(self.sums.share @ losses), grad, losses, params, inner, linear, self.sums.share
        )


def _relative(image: np.ndarray, target: np.ndarray) -> float:
    """Return the residual in units of the right-hand side."""
    return float(np.linalg.norm(image - target) / max(np.linalg.norm(target), 1e-300))
