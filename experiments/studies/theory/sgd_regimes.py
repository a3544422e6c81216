"""The four regimes of SGD on least squares: their data, exact curves, bounds and limits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.noise import Affine, Compressed, LeastSquares
from bilevel.noise.moments import limits, rules, run, stability
from bilevel.noise.quadratic import bounds
from experiments.studies.base import order

MEASURES = ("suboptimality", "Jacobian error")


class Regime(NamedTuple):
    """One column: targets `b [m]`, their Jacobian `J [m, p]`, and a step size for every k."""

    name: str
    A: np.ndarray
    b: np.ndarray
    J: np.ndarray
    steps: np.ndarray


class Curves(NamedTuple):
    """E f(x_k) - f* and E |D_k - D*|^2 for k = 1 .. K, and what the theorem allows; `[2, K]`."""

    exact: np.ndarray
    bound: np.ndarray


def make_regimes(rows: int, features: int, steps: int, seed: int) -> list[Regime]:
    """The four columns of the figure."""
    rng = np.random.default_rng(seed)
    m, n, k = rows, features, np.arange(steps)
    A = rng.standard_normal((m, n))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    mu = np.linalg.eigvalsh(A.T @ A / m)[0]
    fitted = A @ rng.standard_normal(n)
    noisy = fitted + 0.5 * rng.standard_normal(m)
    constant = np.full(len(k), float(bounds.step_cap(mu, 1.0)))
    decreasing = 2 / (mu * (k + 8 / mu**2))
    return [
        Regime("constant step", A, noisy, np.eye(m), constant),
        Regime("decreasing step", A, noisy, np.eye(m), decreasing),
        Regime("double interpolation", A, fitted, A, constant),
        Regime("simple interpolation", A, fitted, np.eye(m), constant),
    ]


@jax.jit
def _follow_moments(process: Any, start: Any, rule: Any) -> Any:
    def observe(now: Any) -> Any:
        P = now.second[0, :, 0]
        return jnp.stack([jnp.trace(process.curvature @ P) / 2, jnp.trace(P)])

    return run(process, start, rule, observe)[1].T


def compute_curves(regime: Regime, bounded: bool = True) -> Curves:
    """The exact curves; with `bounded` also what the theorem allows."""
    A, schedule, found = regime.A, rules.sgd(regime.steps), []
    eigenvalues, L = np.linalg.eigvalsh(A.T @ A / len(A)), (A**2).sum(1).max()
    for which, targets in enumerate((regime.b, regime.J)):
        whole = LeastSquares.from_data(A, targets, batch_size=1)
        process, zero = Compressed.from_least_squares(whole), jnp.zeros_like(whole.solution)
        exact = _follow_moments(process, process.start(zero), schedule)[which]
        noise = float(((np.asarray(whole.residuals) ** 2).sum(1) * (A**2).sum(1)).mean())
        size = float(jnp.sum(whole.solution**2))
        bound = np.full(len(regime.steps), np.nan)
        if bounded:
            bound = bounds.path(regime.steps, eigenvalues[0], L, noise, size)
        scale = (eigenvalues[-1] / 2, 1.0)[which]  # f - f* <= lambda_max / 2 |x - x*|^2
        found.append((np.asarray(exact), scale * np.asarray(bound)))
    return Curves(*(np.stack(parts) for parts in zip(*found, strict=True)))


def predict_limits(regime: Regime, exact: np.ndarray) -> list[dict[str, Any]]:
    """How each curve should end, from the closed forms, and how it does."""
    A, eta = regime.A, regime.steps
    rows = []
    for which, targets in enumerate((regime.b, regime.J)):
        process, curve = LeastSquares.from_data(A, targets, batch_size=1), exact[which]
        weight = np.asarray(process.curvature) / 2 if which == 0 else np.eye(A.shape[1])
        if regime.name == "decreasing step":
            t = np.arange(1, len(curve) + 1) + 8 / find_strong_convexity(A) ** 2
            what, found = "last (k + k0) E", curve[-1] * t[-1]
            expected = float(
                np.trace(weight @ _make_inverse_time(process, 2 / find_strong_convexity(A)))
            )
        elif float(jnp.abs(process.residuals).max()) < 1e-10:
            tail = curve[: int(np.argmax(curve < 1e-22 * curve[0])) or len(curve)]  # above rounding
            what, found = "factor per step", (tail[-1] / tail[-101]) ** 0.01
            expected = float(stability.contraction(process, eta[0]).value)
        else:
            what, found = "last E", curve[-1]
            second = limits.stationary(process, rules.sgd(eta[0])).second[0, :, 0]
            expected = float(np.trace(weight @ np.asarray(second)))
        rows.append({"limit": what, "exact recursion": float(found), "closed form": expected})
    return rows


def find_strong_convexity(A: np.ndarray) -> float:
    """Return ``mu``, the smallest eigenvalue of ``A^T A / m``; rows of length 1 have ``L = 1``."""
    return float(np.linalg.eigvalsh(A.T @ A / len(A))[0])


def _make_inverse_time(process: LeastSquares, gamma: float) -> np.ndarray:
    """lim k P_k, summed over the targets."""
    A, s = process.rows.A, process.residuals
    C = A[:, :, None] * A[:, None, :]
    one = jax.vmap(lambda q: limits.inverse_time(Affine(C, A * q[:, None], process.factor), gamma))
    return np.asarray(jax.jit(one)(s.T).sum(0))


def fit_slope(curve: np.ndarray, offset: float) -> float:
    """Of log E against log(k + offset), over the last decade of k."""
    t = np.arange(1, len(curve) + 1)
    last = np.unique(np.geomspace(t[-1] / 10, t[-1], 200).astype(int)) - 1
    return order(t[last] + offset, curve[last])
