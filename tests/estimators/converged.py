"""Implicit estimates after a full inner solve, and the matrices of ridge regression beside them."""

from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.testing import Case, ridge

RIDGE = ridge(seed=0)
TIGHT = bl.CG(tol=1e-12)


def estimate(case: Case, steps: int | None = None, **settings: Any) -> Any:
    """The estimate after gradient descent, to convergence unless told."""
    return estimate_and_state(case, steps, **settings)[0]


def estimate_and_state(
    case: Case, steps: int | None = None, solver: Any = None, **settings: Any
) -> tuple[Any, Any]:
    """The same with the inner state; another solver in the place of gradient descent."""
    solver = solver or bl.GradientDescent(case.step_size)
    estimator = bl.Implicit(solver, steps or case.steps, **settings)
    key = jax.random.key(0)
    return bl.hypergradient(case.problem, estimator, case.hyper, case.params, case.data, key)


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def matrices(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(H, C, b)`` of a ridge case at its minimiser; ``C = diag(exp(h) w)``."""
    (X, y), (V, c) = case.data.inner, case.data.outer
    penalty = np.exp(case.hyper)
    H = X.T @ X / len(y) + np.diag(penalty)
    w = np.linalg.solve(H, X.T @ y / len(y))
    return H, np.diag(penalty * w), V.T @ (V @ w - c) / len(c)
