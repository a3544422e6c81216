r"""Cross-validation loss of a penalised linear model, by implicit differentiation of every fold.

    inner = sum_i s_i loss(x_i . w + b, y_i) + 1/2 sum_j e^{theta_j} w_j^2
    outer = sum_i v_i loss(x_i . w + b, y_i) / sum_i v_i,   the mean over folds
    H a = grad_w outer,   d outer / d theta_j = -e^{theta_j} w_j a_j

The value has the first-order correction ``-a . gradient``, so its error is of the second order in
that of the inner solution.
"""

import numpy as np

from bilevel.sklearn.losses.glm_fits import EXACT, GlmFits, GlmState
from bilevel.sklearn.losses.glm_folds import GlmFolds, dot_folds, norm_folds, sum_weighted
from bilevel.sklearn.losses.links import Link
from bilevel.sklearn.search.descent import Evaluation

# Decrements squared, relative to the loss, and residuals of the adjoint: to rounding, at the end,
# and along a search for many penalties, which needs differences of gradients; on the grid.
_ROUNDING, _LAST, _MANY = (EXACT, 1e-9), (1e-10, 1e-5), (1e-9, 1e-4)
_COARSE = 1e-5
_REFIT = 1e-14  # decrement of the fit of all rows, at the end
_NEAR = 0.01  # of the loss: differences on the grid that say little
_FREE = 10  # times its curvature: penalty of a column from which on it plays its part


class GlmLoss(GlmFits):
    """The mean over folds; ``theta``: logarithms of the penalties, ``[d, T]`` flattened, or one.

    Each call starts where the last one ended.
    """

    coarse = 1e-3  # relative error of losses on a grid

    def __init__(self, link: Link, folds: GlmFolds, tol: float = 1e-4) -> None:
        """Start at the constant model; ``tol``: gains, relative to the loss, that matter."""
        super().__init__(link, folds)
        # A search for one penalty needs signs of slopes, and differences of losses.
        self.one = np.clip([1e-3 * tol, tol**0.5], _ROUNDING, [1e-7, 1e-2])
        self.last: tuple[np.ndarray, Evaluation] | None = None
        self.adjoint = np.zeros(folds.shape)

    def evaluate_grid(self, grid: np.ndarray) -> np.ndarray:
        """Return the losses ``[G, F]`` of the folds, coarsely, from the strongest penalties on.

        To a tenth of what they are above the best. Ends where they have risen for two points by a
        twentieth: weaker penalties take longest. Not before columns of small units play their part,
        as the loss may fall again with them.
        """
        share, values = self.folds.share, np.full(len(grid), np.inf)
        losses = np.full((len(grid), len(share)), np.inf)
        best = np.inf

        def enough(before: GlmState, at: GlmState) -> bool:
            old, new = (float(share @ self._hold_out(state)) for state in (before, at))
            return abs(new - old) <= 0.1 * max(new - best, _NEAR * new)

        for i, theta in enumerate(grid):
            at, _ = self.solve(theta, _COARSE, enough)
            losses[i] = self._hold_out(at)
            values[i] = share @ losses[i]
            best = np.min(values[: i + 1])
            if i > 1 and values[i] > values[i - 1] > 1.05 * best and self._frees_all(theta):
                break
        return losses[:, share > 0]

    def _frees_all(self, theta: np.ndarray) -> bool:
        """Does every column play its part at these penalties? Sparse ones have one unit."""
        if not self.folds.dense:
            return True
        squares = self.folds.weigh_squares(self.folds.train[:, -1])[:-1, None]
        penalty = np.exp(theta.reshape(len(squares), -1) if len(theta) > 1 else theta)
        free = _FREE * self.curved * self.folds.size[-1] * squares
        return bool(np.all((penalty <= free) | (squares == 0)))

    def _hold_out(self, at: GlmState) -> np.ndarray:
        """Return the mean losses of the held-out rows, ``[F]``."""
        return sum_weighted(self.folds.held, at.losses)

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits, as exactly as a descent needs."""
        if self.last is None or not np.array_equal(self.last[0], theta):
            self.last = (
                np.array(theta),
                self._evaluate(theta, *(self.one if len(theta) == 1 else _MANY)),
            )
        return self.last[1]

    def evaluate_to_rounding(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits up to rounding."""
        return self._evaluate(theta, *_ROUNDING)

    def evaluate_exactly(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits, that of all rows to seven digits."""
        decrement, residual = np.minimum(_LAST, self.one)
        tol = np.full(len(self.folds.share), decrement)
        tol[-1] = min(_REFIT, decrement)
        return self._evaluate(theta, tol, residual)

    def _evaluate(self, theta: np.ndarray, tol: np.ndarray | float, residual: float) -> Evaluation:
        at, strength = self.solve(theta, tol)
        self.system.prepare(at.curvature, strength)
        right = self.folds.back(self.folds.held[:, :, None] * at.slope)
        adjoint, linear = self.system.solve(right, residual, self.adjoint)
        self.adjoint = adjoint
        losses = self._hold_out(at) - dot_folds(adjoint, at.gradient)
        share = self.folds.share
        part = (strength * at.w * adjoint)[:-1, :, : self.folds.sloped]
        grad = -np.einsum("f,dft->dt", share, part)
        grad = np.array([grad.sum()]) if len(theta) == 1 else grad.ravel()
        params = np.moveaxis(at.w, 1, 0)
        inner = float(np.max(norm_folds(at.gradient))) / max(self.first, 1e-300)
        return Evaluation(float(share @ losses), grad, losses, params, inner, linear, share)
