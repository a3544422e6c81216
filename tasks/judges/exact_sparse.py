r"""Exact fits of squared-error models with absolute values or norms, in NumPy and float64.

    w(h) = argmin_w 1/2 mean_i (x_i . w - y_i)^2 + 1/2 sum_j b_j w_j^2 + sum_j a_j |w_j|
    or, with groups g,                           ... + sum_g sqrt(|g|) a_g |w_g|

Coordinate descent is scikit-learn's; groups are left to a proximal method with a certificate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import Lasso

from tasks.parts.penalty import Penalty

TOLERANCE, MOST = 1e-12, 100_000
Batch = tuple[np.ndarray, ...]


def coordinate_descent(
    X: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Return the minimiser without groups; penalties ``a > 0``, ``b >= 0`` of each column ``[d]``.

    One penalty per column is one for all on columns divided by it; squares are rows of their own.
    """
    n, d = X.shape
    scaled = X / a
    if b.any():
        rows = np.diag(np.sqrt(n * b) / a)
        scaled, y = np.concatenate([scaled, rows]), np.concatenate([y, np.zeros(d)])
    model = Lasso(n / len(y), fit_intercept=False, tol=TOLERANCE, max_iter=MOST, warm_start=True)
    if start is not None:
        model.coef_ = np.array(start * a, order="C")
    return model.fit(np.asfortranarray(scaled), y).coef_ / a


@dataclass(frozen=True)
class Groups:
    """The group of each column, ``[d]``, ``0 .. G-1``."""

    of: np.ndarray

    @property
    def roots(self) -> np.ndarray:
        """Return ``sqrt(|g|)``, ``[G]``."""
        return np.sqrt(np.bincount(self.of))

    def norms(self, w: np.ndarray) -> np.ndarray:
        """Return ``|w_g|``, ``[G]``."""
        return np.sqrt(np.bincount(self.of, w**2, len(self.roots)))

    def fit(self, X: np.ndarray, y: np.ndarray, a: np.ndarray) -> np.ndarray:
        """Find the minimiser with groups, ``[d]``, by accelerated proximal steps that restart.

        Raises
        ------
        RuntimeError : not there after 100 000 steps.
        """
        H, c = X.T @ X / len(y), X.T @ y / len(y)
        size, strengths = 1 / np.linalg.eigvalsh(H)[-1], a * self.roots
        w = v = np.zeros(X.shape[1])
        t = 1.0
        for _ in range(MOST):
            z = v - size * (H @ v - c)
            kept = np.maximum(1 - size * strengths / np.maximum(self.norms(z), 1e-300), 0)
            moved = z * kept[self.of]
            if np.max(np.abs(moved - v)) <= 1e-13 * max(1.0, np.max(np.abs(moved))):
                return moved
            t = 1.0 if (v - moved) @ (moved - w) > 0 else t
            following = (1 + np.sqrt(1 + 4 * t**2)) / 2
            v, w, t = moved + (t - 1) / following * (moved - w), moved, following
        raise RuntimeError(f"the group lasso did not converge in {MOST} proximal steps.")


def sensitivity(
    inner: Batch, outer: Batch, w: np.ndarray, a: np.ndarray, b: np.ndarray, groups: Groups | None
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return half the mean squared error of ``outer`` at the minimiser ``w``, and its slopes.

    The slopes in ``log a`` and ``log b``, by column, ``[d]``: a linear system on the support.
    """
    (X, y), (X_held, y_held) = inner, outer
    on = np.flatnonzero(w)
    residual = X_held @ w - y_held
    H = X[:, on].T @ X[:, on] / len(y) + np.diag(b[on])
    if groups is None:
        push = a * np.sign(w)
    else:
        strengths = (a * groups.roots)[groups.of]
        norms = np.maximum(groups.norms(w)[groups.of], 1e-300)
        same = groups.of[on][:, None] == groups.of[on]
        curved = np.diag(1 / norms[on]) - same * np.outer(w[on], w[on]) / norms[on] ** 3
        H += strengths[on][:, None] * curved
        push = strengths * w / norms
    v = np.zeros_like(w)
    v[on] = np.linalg.solve(H, X_held[:, on].T @ residual / len(y_held))
    return float(np.mean(residual**2) / 2), -push * v, -b * w * v


@dataclass(frozen=True)
class Exact:
    """Minimisers, values and slopes in float64, by other algorithms than the library's."""

    kind: str
    strengths: Penalty
    groups: Groups | None

    def penalties(self, hyper: Any, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(a, b)``: per column, or per group; and per column."""
        l1, l2 = (hyper["l1"], hyper["l2"]) if self.kind == "elastic_net" else (hyper, None)
        size = d if self.groups is None else len(self.groups.roots)
        a = np.exp(np.asarray(l1, float))
        a = np.broadcast_to(self._spread(a) if self.groups is None else a, (size,))
        b = np.zeros(d) if l2 is None else self._spread(np.exp(np.asarray(l2, float)))
        return a, np.broadcast_to(b, (d,))

    def _spread(self, values: np.ndarray) -> np.ndarray:
        groups = self.strengths.groups
        return values if groups is None else values[np.array(groups)]

    def fit(self, X: np.ndarray, y: np.ndarray, hyper: Any) -> np.ndarray:
        a, b = self.penalties(hyper, X.shape[1])
        if self.groups is not None:
            return self.groups.fit(X, y, a)
        return coordinate_descent(X, y, a, b)

    def value_and_grad(self, folds: list[Any], hyper: Any) -> tuple[float, Any]:
        """Return the mean outer loss over pairs ``((X, y), (X, y))`` of both levels' rows."""
        a, b = self.penalties(hyper, folds[0][0][0].shape[1])
        found = [
            sensitivity((X, y), held, self.fit(X, y, hyper), a, b, self.groups)
            for (X, y), held in folds
        ]
        value, by_l1, by_l2 = (np.mean(part, axis=0) for part in zip(*found, strict=True))
        if self.kind == "elastic_net":
            grads = {"l1": by_l1, "l2": by_l2}
            return float(value), {n: self._gather(g, hyper[n]) for n, g in grads.items()}
        return float(value), self._gather(by_l1, hyper)

    def _gather(self, by_column: np.ndarray, like: Any) -> np.ndarray:
        if np.ndim(like) == 0:
            return by_column.sum()
        groups = self.groups.of if self.groups is not None else self.strengths.groups
        if groups is None:
            return by_column
        return np.bincount(np.asarray(groups), by_column, np.size(like))


def external(params: Any, hyper: Any, data: Batch) -> Any:
    """Fit for :class:`bilevel.External` with ``task=lasso`` and ``lasso_elastic``.

    Raises
    ------
    ValueError : groups, of columns or of penalties, which the arrays do not tell.
    """
    l1, l2 = (hyper["l1"], hyper["l2"]) if isinstance(hyper, dict) else (hyper, -np.inf)
    d = np.shape(params)[-1]
    if not {np.size(l1), np.size(l2)} <= {1, d}:
        raise ValueError("coordinate descent knows one penalty, or one for each column.")
    a, b = (np.broadcast_to(np.exp(np.asarray(h, float)), (d,)) for h in (l1, l2))
    X, y, *weight = (np.asarray(leaf, float) for leaf in data)
    start = np.asarray(params, float)
    if not weight:
        return coordinate_descent(X, y, a, b, start)
    used = [rows > 0 for rows in weight[0].T]
    return np.stack(
        [coordinate_descent(X[rows, f], y[rows, f], a, b, start[f]) for f, rows in enumerate(used)]
    )
