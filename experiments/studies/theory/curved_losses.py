r"""Generalised linear losses whose Hessian varies, and the constants that the theorem asks for.

    f_i(x, theta) = phi(a_i.x) - (b_i + J_i theta) a_i.x + (mu / 2) |x - c - C theta|^2

at ``theta = 0``, with rows ``a_i`` of length 1. Every ``f_i`` is mu-strongly convex and smooth with
``L = max phi'' + mu``; its Hessian has the Lipschitz constant ``M = max |phi'''|``, which is 0 for
least squares alone. Logistic: ``phi(t) = log(1 + e^t)``, targets in place of labels. Quartic:
``phi'' = 1 + min(t, T)^2``, so ``phi = t^2 / 2 + t^4 / 12`` up to ``|t| = T = 2``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

import bilevel as bl

EDGE = 2.0  # where the quartic goes on as a quadratic, so that its constants are finite
COLUMNS: tuple[str, ...] = (
    "constant step",
    "decreasing step",
    "double interpolation",
    "simple interpolation",
)


class Loss(NamedTuple):
    """A loss of one number: ``phi``, its strong convexity by the penalty, ``max phi''``, ``M``."""

    name: str
    phi: Callable[[Any], Any]
    mu: float
    curvature: float
    lipschitz: float


def quartic(t: Any) -> Any:
    """Return ``t^2 / 2 + t^4 / 12`` up to EDGE, beyond it with the second derivative held."""
    over = jnp.abs(t) - EDGE
    beyond = EDGE**4 / 12 + EDGE**3 / 3 * over + EDGE**2 / 2 * over**2
    return t**2 / 2 + jnp.where(over < 0, t**4 / 12, beyond)


LOGISTIC = Loss("logistic", jax.nn.softplus, 0.1, 0.25, 1 / (6 * 3**0.5))
QUARTIC = Loss("quartic", quartic, 1.0, 1 + EDGE**2, 2 * EDGE)


class Case(NamedTuple):
    """One column: the problem, its data, a step size for every k, and the theorem's constants.

    ``size`` bounds ``|D_k|`` for every draw: ``max_i |d^2 f_i / dx dtheta|_F / mu``.
    """

    name: str
    loss: Loss
    problem: bl.Problem
    data: bl.Data
    steps: np.ndarray
    smoothness: float
    size: float


def make_cases(
    loss: Loss, rows: int, features: int, steps: dict[str, int], seed: int
) -> list[Case]:
    """Return the four columns; ``steps`` says how many steps each takes.

    With noisy targets (the first two) the examples agree about the derivative, ``D* = I``: what
    moves it is the theorem's error term alone. Every row has about 0.35 of its unit length along
    the first axis and every margin is about 1.3, where the third derivative of the logistic loss is
    largest: the direction that converges last is one along which the Hessian varies.
    """
    rng = np.random.default_rng(seed)
    m, n = rows, features
    along, across = rng.uniform(0.3, 0.4, (m, 1)), rng.standard_normal((m, n - 1))
    across *= np.sqrt(1 - along**2) / np.linalg.norm(across, axis=1, keepdims=True)
    A = np.concatenate([along, across], 1)
    zeta = np.concatenate([[1.3 / 0.35], 0.2 * rng.standard_normal(n - 1)])
    fitted = np.asarray(jax.vmap(jax.grad(loss.phi))(A @ zeta))
    noisy = fitted + rng.standard_normal(m)
    if loss is LOGISTIC:
        noisy = (rng.uniform(size=m) < fitted).astype(float)
    disagreeing, zero = rng.standard_normal((m, n)) / n**0.5, np.zeros((n, n))
    L, cases = loss.curvature + loss.mu, []
    for name in COLUMNS:
        b = fitted if "interpolation" in name else noisy
        J, follows = disagreeing, zero
        if name != "simple interpolation":
            J, follows = _find_curvatures(loss, A, b, zeta)[:, None] * A, np.eye(n)
        k = np.arange(steps[name])
        schedule = np.full(len(k), loss.mu / (4 * L**2))
        if name == "decreasing step":
            schedule = 2 / (loss.mu * (k + 8 * (L / loss.mu) ** 2))
        mixed = A[:, :, None] * J[:, None, :] + loss.mu * follows
        size = float(np.sqrt((mixed**2).sum((1, 2))).max()) / loss.mu
        problem, data = _make_problem(loss, zeta, follows), bl.Data(inner=(A, b, J), outer=A)
        cases.append(Case(name, loss, problem, data, schedule, L, size))
    return cases


def centre_problem(problem: bl.Problem, solution: Any, derivative: Any) -> bl.Problem:
    """Return the problem of ``y = x - x* - D* theta``: SGD from ``y = 0`` starts at the solution.

    ``derivative [p, n]``; iterates and derivatives are the deviations of the old ones.
    """

    def inner(y: Any, theta: Any, batch: Any) -> Any:
        return problem.inner(solution + theta @ derivative + y, theta, batch)

    return bl.Problem(inner, problem.outer)


def _find_curvatures(loss: Loss, A: np.ndarray, b: np.ndarray, zeta: np.ndarray) -> np.ndarray:
    """``phi''(a_i.x*)`` at the minimiser of the full loss, ``[m]``."""
    slope, second = jax.vmap(jax.grad(loss.phi)), jax.vmap(jax.grad(jax.grad(loss.phi)))

    def gradient(x: np.ndarray) -> np.ndarray:
        return A.T @ (np.asarray(slope(A @ x)) - b) / len(A) + loss.mu * (x - zeta)

    return np.asarray(second(A @ optimize.root(gradient, zeta, tol=1e-13).x))


def _make_problem(loss: Loss, centre: np.ndarray, follows: np.ndarray) -> bl.Problem:
    def inner(x: Any, theta: Any, batch: Any) -> Any:
        A, b, J = batch
        t = A @ x
        penalty = loss.mu / 2 * jnp.sum((x - centre - follows @ theta) ** 2)
        return jnp.mean(loss.phi(t) - (b + J @ theta) * t) + penalty

    def outer(x: Any, theta: Any, batch: Any) -> Any:
        return jnp.sum(x**2) / 2

    return bl.Problem(inner, outer)
