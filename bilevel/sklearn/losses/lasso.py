r"""Cross-validation loss of the elastic net, and its gradient on the support.

    w = argmin 1/2 w^T G w - c^T w + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2
    (G + diag(l2))_SS v_S = (d loss / d w)_S,   S = {j : w_j != 0}
    d loss / d log l1_j = -l1_j sign(w_j) v_j,     d loss / d log l2_j = -l2_j w_j v_j

The implicit function theorem restricted to the support (Bertrand et al., JMLR 2022, "Implicit
differentiation for fast hyperparameter selection in non-smooth convex learning"). Where the columns
of the support depend on each other, ``v`` is the smallest solution: right for penalties that move
together, and how many directions it leaves undetermined is counted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bilevel.sklearn.losses.active_set import (
    QuadraticFold,
    SparseFit,
    fit_elastic_net,
    measure_excess,
    solve_determined,
)
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics
from bilevel.sklearn.search.descent import Evaluation

_LARGE, _RISEN = 300, 1.15  # columns in use, and logarithms of penalty, at which a path may end
_MOST = 1000  # columns in use that every path of a grid may have


class ElasticNetPenalty(NamedTuple):
    """The penalty of ``l1 [d]``, ``l2 [d]``, as a function of logarithms: of both, or of one.

    ``kinds``: 2, or 1 where both are parts of one penalty.
    """

    l1: np.ndarray
    l2: np.ndarray
    kinds: int
    positive: bool = False

    def solve(self, fold: QuadraticFold, start: SparseFit) -> SparseFit:
        """Return the minimiser of a quadratic and the penalty, from ``start`` on."""
        return fit_elastic_net(fold, self.l1, self.l2, start, positive=self.positive)

    def measure(self, slope: np.ndarray, fit: SparseFit) -> float:
        """Return the largest violation of the optimality conditions."""
        excess = measure_excess(slope, self.l1, self.l2, fit.support, fit.w, positive=self.positive)
        return float(np.max(excess, initial=0))

    def evaluate(self, support: np.ndarray, w: np.ndarray) -> float:
        """Return the penalty of ``w``."""
        return float(self.l1[support] @ np.abs(w) + self.l2[support] @ w**2 / 2)

    def curve(self, support: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Return its Hessian on the support."""
        return np.diag(self.l2[support])

    def differentiate(self, support: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the derivative of ``v . slope of the penalty`` in the logarithms."""
        grad = np.zeros((2, len(self.l1)))
        grad[0, support] = self.l1[support] * np.sign(w) * v
        grad[1, support] = self.l2[support] * w * v
        return grad.ravel() if self.kinds == 2 else grad.sum(0)


class SparseLoss:
    """The mean over folds, of a penalty that ``penalty_of`` makes of ``theta``.

    Each call starts where the last one ended.
    """

    def __init__(self, problem: FoldQuadratics, penalty_of: Callable[[np.ndarray], Any]) -> None:
        """Start at no column."""
        self.problem, self.penalty_of = problem, penalty_of
        self._start_anew()

    def _start_anew(self) -> None:
        """Forget the fits: the next start at no column."""
        none = SparseFit(np.zeros(0, int), np.zeros(0), np.inf)
        self.fits = [none] * len(self.problem.folds)

    def evaluate_grid(self, grid: np.ndarray) -> np.ndarray:
        """Return the losses ``[G, F]`` of the folds; derivatives and the fit of all rows wait.

        A path is a part of the grid along which penalties fall: weaker ones take longest. With many
        columns in use it ends where the loss no longer falls and has been above the best by half a
        percent for half a decade; a later one also where more are in use than in the first. The
        next call starts where the best point ended.
        """
        used = self.problem.share > 0
        share, values = self.problem.share[used], np.full((len(grid), int(used.sum())), np.inf)
        at_best, best, most = self.fits, np.inf, np.inf
        starts = np.flatnonzero(np.diff(grid[:, 0]) > 0) + 1
        for number, path in enumerate(np.split(np.arange(len(grid)), starts)):
            if number:
                self._start_anew()
            columns = 0
            for i in path:
                values[i] = self._evaluate_folds(grid[i])
                mean = float(values[i] @ share)
                if not mean > best:
                    best, at_best = mean, list(self.fits)
                columns = max(len(fit.support) for fit in self.fits)
                last = path[(path <= i) & (grid[path, 0] < grid[i, 0] + _RISEN)]
                means = values[last] @ share
                risen = len(last) > 2 and means[-1] >= means[0]
                risen = risen and bool(np.all(means > best + 0.005 * abs(best)))
                if columns > most or (columns > _LARGE and risen):
                    break
            most = most if number else max(columns, _MOST)
        self.fits = at_best
        return values

    def _evaluate_folds(self, theta: np.ndarray) -> np.ndarray:
        """Return the losses of the folds that count."""
        penalty, losses = self.penalty_of(theta), []
        for k in map(int, np.flatnonzero(self.problem.share)):
            fit = self.fits[k] = self.problem.folds[k].fit(penalty, self.fits[k])
            losses.append(self.problem.folds[k].evaluate(fit.support, fit.w).value)
        return np.array(losses)

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits: coefficients ``[F, d + 1, 1]``, the intercept last."""
        penalty, share = self.penalty_of(theta), self.problem.share
        d = len(self.problem.folds[-1].cross)
        losses, grad = np.zeros(len(share)), np.zeros_like(theta)
        inner, linear, coef = 0.0, 0.0, np.zeros((len(share), d + 1, 1))
        for k, fold in enumerate(self.problem.folds):
            if share[k] == 0 and k < len(share) - 1:
                continue
            fit = self.fits[k] = fold.fit(penalty, self.fits[k])
            support, w = fit.support, fit.w
            losses[k], right = fold.evaluate(support, w)
            coef[k, support, 0], coef[k, -1] = w, fit.intercept
            if share[k] == 0 or not len(support):
                continue
            matrix = fold.block(support) + penalty.curve(support, w)
            v, _ = solve_determined(matrix, right)
            residual = np.linalg.norm(matrix @ v - right) / max(np.linalg.norm(right), 1e-300)
            inner, linear = max(inner, fit.violation), max(linear, float(residual))
            grad -= share[k] * penalty.differentiate(support, w, v)
        return Evaluation(float(share @ losses), grad, losses, coef, inner, linear, share)

    def count_undetermined(self, theta: np.ndarray) -> int:
        """Return how many directions of the fit to all rows have no curvature of their own."""
        support, w = self.fits[-1].support, self.fits[-1].w
        curved = self.penalty_of(theta).curve(support, w)
        return solve_determined(self.problem.folds[-1].block(support) + curved, w)[1]


class ElasticNetLoss(SparseLoss):
    """The mean over folds; ``theta``: logarithms of ``l1 [d]`` and, of two kinds, ``l2 [d]``.

    Of one kind ``theta [d]`` are logarithms of ``l1 / ratio`` and of ``l2 / (1 - ratio)``.
    """

    def __init__(
        self, problem: FoldQuadratics, kinds: int, *, ratio: float = 1.0, positive: bool = False
    ) -> None:
        """Start at no column; ``kinds``: 1 for the lasso, 2 for the elastic net."""

        def penalty_of(theta: np.ndarray) -> ElasticNetPenalty:
            both = np.exp(theta).reshape(kinds, -1)
            if kinds == 1:
                both = np.array([[ratio], [1 - ratio]]) * both
            return ElasticNetPenalty(both[0], both[1], kinds, positive)

        super().__init__(problem, penalty_of)
