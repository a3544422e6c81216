r"""Cross-validation loss of the elastic net, and its gradient on the support.

    w = argmin 1/2 w^T G w - c^T w + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2
    (G + diag(l2))_SS v_S = (d loss / d w)_S,   S = {j : w_j != 0}
    d loss / d log l1_j = -l1_j sign(w_j) v_j,     d loss / d log l2_j = -l2_j w_j v_j

The implicit function theorem restricted to the support (Bertrand et al., JMLR 2022, "Implicit
differentiation for fast hyperparameter selection in non-smooth convex learning"). Where the columns
of the support depend on each other, ``v`` is the smallest solution: right for penalties that move
together, and how many directions it leaves undetermined is counted.
"""

import numpy as np

from bilevel.sklearn.losses.active_set import SparseFit, fit_elastic_net, solve_determined
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics
from bilevel.sklearn.search.descent import Evaluation

_LARGE, _RISEN = 300, 8  # columns in use, and points of the grid, at which it may end early


class ElasticNetLoss:
    """The mean over folds; ``theta``: logarithms of ``l1 [d]`` and, of the elastic net, ``l2 [d]``.

    Each call starts where the last one ended.
    """

    def __init__(self, problem: FoldQuadratics, kinds: int, *, positive: bool = False) -> None:
        """Start at no column; ``kinds``: 1 for the lasso, 2 for the elastic net."""
        self.problem, self.kinds, self.positive = problem, kinds, positive
        none = SparseFit(np.zeros(0, int), np.zeros(0), np.inf)
        self.fits = [none] * len(problem.folds)

    def _solve(self, k: int, l1: np.ndarray, l2: np.ndarray) -> SparseFit:
        fold = self.problem.folds[k]
        self.fits[k] = fit_elastic_net(fold, l1, l2, self.fits[k], positive=self.positive)
        return self.fits[k]

    def _split(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = np.exp(theta).reshape(self.kinds, -1)
        return both[0], both[1] if self.kinds == 2 else np.zeros_like(both[0])

    def evaluate_grid(self, grid: np.ndarray) -> np.ndarray:
        """Return the losses ``[G, F]`` of the folds; derivatives and the fit of all rows wait.

        With many columns in use, ends where the loss has been above its best by half a percent for
        the points of half a decade: weaker penalties take longest.
        """
        share = self.problem.share
        values = np.full((len(grid), len(share)), np.inf)
        for i, theta in enumerate(grid):
            l1, l2 = self._split(theta)
            for k in map(int, np.flatnonzero(share)):
                support, w, _ = self._solve(k, l1, l2)
                values[i, k] = self.problem.folds[k].evaluate(support, w).value
            means = values[: i + 1, share > 0] @ share[share > 0]
            large = max(len(fit.support) for fit in self.fits) > _LARGE
            best = np.min(means)
            if large and np.all(means[-_RISEN:] > best + 0.005 * abs(best)):
                break
        return values[:, share > 0]

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits."""
        l1, l2 = self._split(theta)
        share, d = self.problem.share, len(l1)
        losses, grad = np.zeros(len(share)), np.zeros((2, d))
        inner, linear, coef = 0.0, 0.0, np.zeros((len(share), d, 1))
        for k, fold in enumerate(self.problem.folds):
            if share[k] == 0 and k < len(share) - 1:
                continue
            support, w, violation = self._solve(k, l1, l2)
            losses[k], right = fold.evaluate(support, w)
            coef[k, support, 0] = w
            if share[k] == 0 or not len(support):
                continue
            matrix = fold.block(support) + np.diag(l2[support])
            v, _ = solve_determined(matrix, right)
            residual = np.linalg.norm(matrix @ v - right) / max(np.linalg.norm(right), 1e-300)
            inner, linear = max(inner, violation), max(linear, float(residual))
            grad[0, support] -= share[k] * l1[support] * np.sign(w) * v
            grad[1, support] -= share[k] * l2[support] * w * v
        return Evaluation(
            float(share @ losses), grad[: self.kinds].ravel(), losses, coef, inner, linear, share
        )

    def count_undetermined(self, theta: np.ndarray) -> int:
        """Return how many directions of the fit to all rows have no curvature of their own."""
        support, w, _ = self.fits[-1]
        matrix = self.problem.folds[-1].block(support) + np.diag(self._split(theta)[1][support])
        return solve_determined(matrix, w)[1]
