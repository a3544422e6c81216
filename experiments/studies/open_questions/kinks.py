r"""Problems with kinks for `nonsmooth`, and their exact hypergradients in NumPy.

Both references solve the problem by coordinates, read off which kinks are active, solve the
optimality conditions that remain (linear ones) and refuse an answer that does not satisfy the rest.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.solvers.proximal import forward_backward
from bilevel.solvers.sampling import Sampler
from bilevel.utils import register_node
from experiments.studies.open_questions import problems
from tasks.judges.exact_sparse import coordinate_descent, sensitivity

BATCH, LAM1 = 8, 0.1


@register_node
@dataclass(frozen=True)
class ProximalSGD:
    """A solver of one's own: minibatch SGD, then the proximal map."""

    step_size: Any

    def check(self, problem: bl.Problem) -> None:
        """Applies ``loss.prox``."""

    def init(self, params: Any, data: Any) -> Any:
        """The sampler's state."""
        return Sampler(BATCH).init(data)

    def step(self, loss: Any, params: Any, hyper: Any, data: Any, key: Any, state: Any) -> Any:
        """One forward-backward step on a minibatch."""
        batch, state = Sampler(BATCH).draw(data, key, state)
        return forward_backward(loss, params, hyper, batch, self.step_size), state


def _squares(w: Any, hyper: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def _elastic(w: Any, hyper: Any, batch: Any) -> Any:
    return _squares(w, hyper, batch) + jnp.exp(hyper[1]) * jnp.sum(w**2) / 2


def soft_threshold(w: Any, hyper: Any, step: Any) -> Any:
    """Return the proximal map of ``exp(hyper[0]) |w|_1`` at a step."""
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step * jnp.exp(hyper[0]), 0)


def _lasso_whole(w: Any, hyper: Any, batch: Any) -> Any:
    return _squares(w, hyper, batch) + jnp.exp(hyper[0]) * jnp.sum(jnp.abs(w))


def _elastic_whole(w: Any, hyper: Any, batch: Any) -> Any:
    return _elastic(w, hyper, batch) + jnp.exp(hyper[0]) * jnp.sum(jnp.abs(w))


def _log_loss(w: Any, hyper: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


def _hinge(w: Any, hyper: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean(jnp.maximum(0, 1 - y * (X @ w))) + jnp.exp(hyper[0]) * jnp.sum(w**2) / 2


def _smoothed(w: Any, hyper: Any, batch: Any) -> Any:
    X, y = batch
    loss = hyper[1] * jax.nn.softplus((1 - y * (X @ w)) / hyper[1])
    return jnp.mean(loss) + jnp.exp(hyper[0]) * jnp.sum(w**2) / 2


PROXIMAL = {
    "lasso": bl.Problem(_squares, _squares, prox=soft_threshold),
    "elastic net": bl.Problem(_elastic, _squares, prox=soft_threshold),
}
WHOLE = {
    "lasso": bl.Problem(_lasso_whole, _squares),
    "elastic net": bl.Problem(_elastic_whole, _squares),
}
# The width is a hyperparameter as well, so that one compilation serves all of them.
HINGE, SMOOTHED = bl.Problem(_hinge, _log_loss), bl.Problem(_smoothed, _log_loss)


class Reference(NamedTuple):
    """Exact ``value`` and ``grad``; what differentiating subgradient SGD tends to, ``missed``."""

    solution: np.ndarray
    grad: np.ndarray
    missed: np.ndarray
    active: int  # coordinates in the support; examples on the margin


def solve_sparse(inner: Any, outer: Any, log_lam1: float, lam2: float) -> Reference:
    r"""Of ``|X w - y|^2 / 2n + lam1 |w|_1 + lam2 |w|^2 / 2`` for ``(log lam1, log lam2)``.

    On the support S with signs s: ``w_S = (H_SS + lam2)^-1 (X_S^T y / n - lam1 s)``. ``grad`` has
    one entry where ``lam2`` is 0. The outer loss is half the mean squared error.
    """
    (X, y), lam1 = inner, float(np.exp(log_lam1))
    n, d = X.shape
    A, b = X.T @ X / n + lam2 * np.eye(d), X.T @ y / n
    penalties = np.full(d, lam1), np.full(d, lam2)
    w = coordinate_descent(X, y, *penalties)
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
    _, *slopes = sensitivity(inner, outer, w, *penalties, None)
    exact = [by_column.sum() for by_column in slopes[: len(pulls)]]
    missed = [np.linalg.solve(A, pull) @ slope for pull in pulls]
    return Reference(w, np.array(exact), np.array(missed), int(S.sum()))


def solve_hinge(inner: Any, outer: Any, log_lam: float) -> Reference:
    r"""Of ``mean max(0, 1 - y x.w) + lam |w|^2 / 2`` for ``log lam``; outer: mean logistic loss.

    ``w = sum_i alpha_i z_i / (lam n)``, ``z_i = y_i x_i``, ``alpha`` in [0, 1], strictly between
    for the examples M on the margin, where ``z_i.w = 1`` stays: ``dw/dlog lam = -P w``.
    """
    (X, y), lam = inner, float(np.exp(log_lam))
    Z, n = X * y[:, None], len(y)
    alpha, w, sizes = np.zeros(n), np.zeros(X.shape[1]), (X**2).sum(1)
    for _ in range(3000):
        before = alpha.copy()
        for i in range(n):
            new = min(max(alpha[i] + (1 - Z[i] @ w) * lam * n / sizes[i], 0.0), 1.0)
            w, alpha[i] = w + (new - alpha[i]) * Z[i] / (lam * n), new
        if np.abs(alpha - before).max() < 1e-14:
            break
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


Case = tuple[problems.Setting, Reference, float]  # the last is the smallest curvature


def make_sparse_case(name: str, seed: int) -> Case:
    """Lasso or elastic net with half of the coordinates in the signal."""
    X, _, rng = problems.make_design(seed, 120, 12, spread=0.1)
    w = np.where(np.arange(12) % 2, 0.0, 2.0) * np.sign(rng.standard_normal(12))
    y = X @ w + rng.standard_normal(120)
    lam2 = 0.05 if name == "elastic net" else 0.0
    hyper = np.log([LAM1, lam2]) if lam2 else np.log([LAM1])
    data = bl.Data(inner=(X[:40], y[:40]), outer=(X[40:], y[40:]))
    exact = solve_sparse(data.inner, data.outer, hyper[0], lam2)
    H = X[:40].T @ X[:40] / 40 + lam2 * np.eye(12)
    largest = (X[:40] ** 2).sum(1).max() + lam2
    mu = float(np.linalg.eigvalsh(H)[0])
    at = problems.Setting(name, PROXIMAL[name], hyper, np.zeros(12), data, exact.grad, mu, largest)
    return at, exact, mu
