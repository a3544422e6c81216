"""Heavy balls of matrix rate on one quadratic, each with its exact stationary covariance."""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_discrete_lyapunov

from bilevel.noise.quadratic import preconditioned, steady_state

CURVATURES = (0.2, 0.7, 1.0)
FRACTIONS = (0.05, 0.2, 0.5, 0.8, 0.9, 0.99)  # of the limit of the step size
MOMENTA = (0.0, 0.5, 0.9)
BATCH = 4  # of natural gradient


class Cell(NamedTuple):
    """A heavy ball of matrix rate: what it stands for, and its stationary covariance."""

    method: str
    momentum: float
    setting: float
    rate: np.ndarray
    noise: np.ndarray
    exact: np.ndarray
    continuous: np.ndarray


def make_matrices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hessian and noise covariance, with bases of their own."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    root = rng.standard_normal((3, 3))
    return (basis * np.array(CURVATURES)) @ basis.T, root @ root.T / 3 + 0.1 * np.eye(3)


def make_cells(K: np.ndarray, C: np.ndarray) -> list[Cell]:
    """SGD and Newton up to their limits, natural gradient at its fixed point."""
    found, eye, inverse = [], np.eye(3), np.linalg.inv(K)

    def add(method: str, mu: float, setting: float, rate: Any, noise: Any, exact: Any) -> None:
        past = steady_state.continuous_covariance(K, noise, rate, mu)
        parts = (np.asarray(x) for x in (rate, noise, exact, past))
        found.append(Cell(method, mu, setting, *parts))

    for mu in MOMENTA:
        for fraction in FRACTIONS:
            rate = fraction * float(steady_state.step_limit(K, mu))
            exact = steady_state.covariance(K, C, rate, mu)
            add("SGD", mu, fraction, rate * eye, C, exact)
            rate = fraction * 2 * (1 + mu)
            add("Newton", mu, fraction, rate * inverse, C, preconditioned.newton(K, C, rate, mu))
    for mu in MOMENTA:
        for lam in (0.1, 0.5, 1.0):
            exact = preconditioned.natural_gradient(K, lam, BATCH, mu)
            J = K @ np.asarray(exact) @ K
            rate = np.linalg.inv(J)
            add(
                "natural gradient", mu, lam, lam * (rate + rate.T) / 2, (J + J.T) / 2 / BATCH, exact
            )
    return found


def solve_lyapunov(K: np.ndarray, cell: Cell) -> float:
    """By how much the covariance misses that of the discrete Lyapunov equation, by SciPy."""
    eye, mu, rate = np.eye(len(K)), cell.momentum, cell.rate
    A, B = np.block([[eye - rate @ K, -mu * rate], [K, mu * eye]]), np.vstack([-rate, eye])
    joint = solve_discrete_lyapunov(A, B @ cell.noise @ B.T)[: len(K), : len(K)]
    return float(np.abs(joint - cell.exact).max() / np.abs(joint).max())
