"""One compiled program for value and hypergradient, descended on the host by SciPy's L-BFGS-B.

The outer loop is not compiled: its program would take four times as long to compile as the
objective, for every new shape, and its few dozen steps cost a microsecond where the objective
costs a millisecond. On the host the inner solver's start is carried from step to step for free.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import OptimizeResult, minimize

from bilevel.utils import PyTree

Tree = TypeVar("Tree")


class Evaluation(NamedTuple):
    """The outer loss at one point: ``value ()``, ``grad [q]``, and ``losses [F]`` of the folds.

    ``params`` leads with F, its last entry fitted to all rows of the problem; the residuals are
    the largest over the folds; ``lower`` is where the next inner solve starts.
    """

    value: Any
    grad: Any
    losses: Any
    params: Any
    inner_residual: Any
    linear_residual: Any
    lower: PyTree = None


# ``(theta [q], batch, lower) -> Evaluation``, a function of a module: it names the program.
Objective = Callable[[Array, Any, Any], Evaluation]


@partial(jax.jit, static_argnames="objective")
def _evaluate(objective: Objective, theta: Array, batch: PyTree, lower: PyTree) -> Evaluation:
    return objective(theta, batch, lower)


class OuterLoss:
    """An outer loss as NumPy sees it; each call starts where the last one ended."""

    def __init__(self, objective: Objective, batch: PyTree, lower: PyTree = None) -> None:
        """Move ``batch`` and ``lower`` to the device once."""
        self.objective = objective
        self.batch, self.lower = to_device((batch, lower))

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient, fits and evidence at ``theta``."""
        theta = np.asarray(theta, np.float64)
        found = _evaluate(self.objective, theta, self.batch, self.lower)
        if np.isfinite(found.value):
            self.lower = found.lower
        return found


def minimise_outer(
    outer: OuterLoss,
    phi: np.ndarray,
    groups: np.ndarray,
    bounds: np.ndarray,
    *,
    max_iter: int,
    tol: float,
    least: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise ``outer(phi[groups])``: ``phi`` and the loss at the start and after each step.

    Ends where a step gains less than ``tol`` of the loss, or less than ``least``.
    """
    values, points = [], []
    first = outer(phi[groups])
    size = len(phi)
    slope = np.bincount(groups, np.asarray(first.grad), size)
    # So scaled that the first trial moves the steepest entry by 1: the loss has no unit of its own.
    unit = float(np.max(np.abs(slope))) or 1.0

    def scaled(phi: np.ndarray) -> tuple[float, np.ndarray]:
        at = outer(phi[groups])
        value, grad = float(at.value), np.bincount(groups, np.asarray(at.grad), size)
        if not np.isfinite(value) or not np.all(np.isfinite(grad)):
            return np.inf, np.zeros(size)
        return value / unit, grad / unit

    def note(intermediate_result: OptimizeResult) -> None:
        points.append(np.array(intermediate_result.x))
        values.append(float(intermediate_result.fun) * unit)

    options = {"maxiter": max_iter, "ftol": max(tol, least / unit), "gtol": 1e-9, "maxls": 30}
    minimize(
        scaled, phi, jac=True, method="L-BFGS-B", bounds=bounds, callback=note, options=options
    )
    return np.array([phi, *points]), np.array([float(first.value), *values])


def to_device(tree: Tree) -> Tree:
    """Convert to arrays of JAX, floats in float64, once for all calls that use them."""
    return jax.tree.map(jnp.asarray, tree)


def to_host(tree: Tree) -> Tree:
    """Convert to NumPy arrays."""
    return jax.tree.map(np.asarray, tree)
