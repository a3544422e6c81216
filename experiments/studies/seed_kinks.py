r"""Exact hypergradients of problems with kinks, in NumPy: what `seed_nonsmooth` measures against.

Both solve the problem with a slow first-order method, read off which kinks are active, solve the
optimality conditions that remain (linear ones) and refuse an answer that does not satisfy the rest.
"""

from typing import Any, NamedTuple

import numpy as np


class Reference(NamedTuple):
    """Exact ``value`` and ``grad``; what differentiating subgradient SGD tends to, ``missed``."""

    solution: np.ndarray
    grad: np.ndarray
    missed: np.ndarray
    active: int  # coordinates in the support; examples on the margin


def sparse_reference(inner: Any, outer: Any, log_lam1: float, lam2: float) -> Reference:
    r"""Of ``|X w - y|^2 / 2n + lam1 |w|_1 + lam2 |w|^2 / 2`` for ``(log lam1, log lam2)``.

    On the support S with signs s: ``w_S = (H_SS + lam2)^-1 (X_S^T y / n - lam1 s)``. ``grad`` has
    one entry where ``lam2`` is 0. The outer loss is half the mean squared error.
    """
    (X, y), lam1 = inner, float(np.exp(log_lam1))
    n, d = X.shape
    A, b = X.T @ X / n + lam2 * np.eye(d), X.T @ y / n
    w, step = np.zeros(d), 1 / np.linalg.eigvalsh(X.T @ X / n + lam2 * np.eye(d))[-1]
    for _ in range(20_000):
        v = w - step * (A @ w - b)
        w = np.sign(v) * np.maximum(np.abs(v) - step * lam1, 0)
    S, s = w != 0, np.sign(w)
    w = np.zeros(d)
    w[S] = np.linalg.solve(A[np.ix_(S, S)], b[S] - lam1 * s[S])
    slack = lam1 - np.abs(A @ w - b)[~S]
    if (np.sign(w) != s).any() or (len(slack) and slack.min() < 1e-3 * lam1):
        raise ValueError("the support is not found, or about to change: take another seed.")
    subgradient = -(A @ w - b) / lam1

    V, c = outer
    slope = V.T @ (V @ w - c) / len(c)
    pulls = [-lam1 * subgradient] + ([-lam2 * w] if lam2 else [])
    exact = [np.linalg.solve(A[np.ix_(S, S)], pull[S]) @ slope[S] for pull in pulls]
    missed = [np.linalg.solve(A, pull) @ slope for pull in pulls]
    return Reference(w, np.array(exact), np.array(missed), int(S.sum()))


def hinge_reference(inner: Any, outer: Any, log_lam: float) -> Reference:
    r"""Of ``mean max(0, 1 - y x.w) + lam |w|^2 / 2`` for ``log lam``; outer: mean logistic loss.

    ``w = sum_i alpha_i z_i / (lam n)``, ``z_i = y_i x_i``, ``alpha`` in [0, 1], strictly between
    for the examples M on the margin, where ``z_i.w = 1`` stays: ``dw/dlog lam = -P w``.
    """
    (X, y), lam = inner, float(np.exp(log_lam))
    Z, n = X * y[:, None], len(y)
    alpha, w, sizes = np.zeros(n), np.zeros(X.shape[1]), (X**2).sum(1)
    for _ in range(3000):
        for i in range(n):
            new = min(max(alpha[i] + (1 - Z[i] @ w) * lam * n / sizes[i], 0.0), 1.0)
            w, alpha[i] = w + (new - alpha[i]) * Z[i] / (lam * n), new
    M, full = (alpha > 1e-6) & (alpha < 1 - 1e-6), alpha >= 1 - 1e-6
    E = Z[M]
    rest = Z[full].sum(0) / (lam * n)
    on = np.linalg.solve(E @ E.T, 1 - E @ rest)  # alpha_M / (lam n)
    w = rest + E.T @ on
    margins = Z @ w
    inside = ((on > 0) & (on * lam * n < 1)).all()
    if not inside or (margins[full] > 1).any() or (margins[~full & ~M] < 1).any():
        raise ValueError("the margin's examples are not found: take another seed.")

    V, c = outer
    slope = -(V * (c / (1 + np.exp(c * (V @ w))))[:, None]).mean(0)
    moved = -(w - E.T @ np.linalg.solve(E @ E.T, E @ w))
    return Reference(w, np.array([moved @ slope]), np.array([-w @ slope]), int(M.sum()))
