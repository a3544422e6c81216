r"""Approximate leave-one-out of a generalised linear model, by one Newton step from the whole fit.

With ``l`` the loss of a row at its scores ``z_i = J_i w``, ``g_i, L_i`` its slope and Hessian,
``s_i`` the weights, ``H = sum_i s_i J_i^T L_i J_i + D`` and ``A_i = J_i H^{-1} J_i^T``,

    z~_i = z_i + s_i A_i (I - s_i L_i A_i)^{-1} g_i,     value = sum_i s_i l(z~_i) / sum s

Rad, Maleki, JRSS B 2020; exact where the loss is quadratic. The gradient is that of this formula,
third derivatives of the loss included. H is dense.
"""

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from bilevel.sklearn.losses.glm_fits import EXACT, GlmFits
from bilevel.sklearn.losses.glm_folds import GlmFolds
from bilevel.sklearn.losses.links import Link
from bilevel.sklearn.losses.preconditioner import NEAR
from bilevel.sklearn.search.descent import Evaluation

_ROOM = 5000  # coefficients, whose Hessian is dense


class AloLoss:
    """Approximate leave-one-out; ``theta``: as of :class:`GlmFits`."""

    def __init__(self, link: Link, rows: GlmFolds) -> None:
        """Take the rows of one fold that trains on all of them.

        Raises
        ------
        ValueError : the Hessian has no room.
        """
        self.link, self.rows, self.fit = link, rows, GlmFits(link, rows)
        d, _, outputs = rows.shape
        if d * outputs > _ROOM:
            raise ValueError(
                f"cv='alo' factorises the Hessian of all {d * outputs} coefficients, more than "
                f"{_ROOM}: give a cv of folds, which need no Hessian."
            )
        centred = rows.X if rows.dense else rows.X.toarray() - rows.centre
        self.design = np.column_stack([centred, np.ones(len(centred))])
        self.fixed = np.zeros((d, outputs), bool)  # coefficients that are none
        self.fixed[:-1, rows.sloped :] = True
        self.fixed[-1, : rows.sloped] = not rows.intercept

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and the fit to all rows."""
        at, strength = self.fit.solve(theta, EXACT)
        z, y, s = at.z[:, 0], self.rows.target[:, 0], self.rows.train[:, 0]
        w, penalty, g = at.w[:, 0], strength[:, 0], at.slope[:, 0]
        outputs = z.shape[1]
        # Hessians of the rows, [n, T, T], and of the whole, inverted.
        each = np.eye(outputs)[:, None, None] * np.ones((1, len(z), 1, 1))
        L = np.stack([self.link.curved(at.curvature, unit)[:, 0] for unit in each], 2)
        inverse, residual = self._invert(s[:, None, None] * L, penalty)
        A = self._sandwich(inverse)
        scale = s[:, None, None]
        B = np.linalg.inv(np.eye(outputs) - scale * L @ A)
        Bg = B @ g[:, :, None]
        moved = z + s[:, None] * (A @ Bg)[:, :, 0]
        losses = self.link.value(moved[:, None], y[:, None])[:, 0]
        v = s[:, None] * self.link.derive(moved[:, None], y[:, None])[0][:, 0]
        # By A_i, by L_i and by z_i; what A_i depends on comes by H^{-1} M H^{-1}.
        u = np.swapaxes(B, 1, 2) @ A @ v[:, :, None]
        by_a = _symmetric(scale * (B @ v[:, :, None]) @ np.swapaxes(Bg, 1, 2))
        by_l = _symmetric(scale * u @ (moved - z)[:, None, :])
        middle = inverse @ self._gather(by_a) @ inverse
        by_l = by_l - scale * self._sandwich(middle)
        by_z = v + s[:, None] * (L @ u)[:, :, 0] + self.link.third(z, y, by_l)
        adjoint = inverse @ (self.design.T @ by_z).ravel()
        grad = -penalty * (w * adjoint.reshape(w.shape) + np.diag(middle).reshape(w.shape))
        grad = grad[:-1, : self.rows.sloped]
        grad = np.array([grad.sum()]) if len(theta) == 1 else grad.ravel()
        value = float(s @ losses)
        inner = float(np.linalg.norm(at.gradient)) / max(self.fit.first, 1e-300)
        return Evaluation(value, grad, np.array([value]), w[None], inner, residual)

    def _gather(self, weight: np.ndarray) -> np.ndarray:
        """Return ``sum_i J_i^T weight_i J_i`` for ``weight [n, T, T]``."""
        X, outputs = self.design, weight.shape[1]
        blocks = [
            [X.T @ (weight[:, t, u, None] * X) for u in range(outputs)] for t in range(outputs)
        ]
        size = X.shape[1] * outputs
        return np.transpose(np.array(blocks), (2, 0, 3, 1)).reshape(size, size)

    def _sandwich(self, matrix: np.ndarray) -> np.ndarray:
        """Return ``J_i matrix J_i^T``, ``[n, T, T]``."""
        X, d = self.design, self.design.shape[1]
        blocks = matrix.reshape(d, -1, d, matrix.shape[0] // d)
        each = [
            [np.sum((X @ blocks[:, t, :, u]) * X, 1) for u in range(blocks.shape[3])]
            for t in range(blocks.shape[1])
        ]
        return np.transpose(np.array(each), (2, 0, 1))

    def _invert(self, weight: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the inverse Hessian of the coefficients that are some, 0 elsewhere; its error."""
        matrix = self._gather(weight)
        matrix[np.diag_indices(len(matrix))] += penalty.ravel() + NEAR * np.diag(matrix)
        if self.rows.sloped > 1:
            # One number added to all classes changes nothing: any curvature will do there.
            for j in np.flatnonzero(penalty.max(1) <= 2 * self.fit.flat):
                part = slice(j * penalty.shape[1], (j + 1) * penalty.shape[1])
                matrix[part, part] += np.trace(matrix[part, part])
        out = self.fixed.ravel()
        matrix[out] = matrix[:, out] = 0.0
        matrix[out, out] = 1.0
        inverse = cho_solve(cho_factor(matrix, lower=True), np.eye(len(matrix)))
        residual = float(np.linalg.norm(matrix @ inverse - np.eye(len(matrix)))) / len(matrix)
        inverse[out, out] = 0.0
        return inverse, residual


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + np.swapaxes(matrix, 1, 2)) / 2
