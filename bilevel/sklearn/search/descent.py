"""One compiled program for value and hypergradient, descended on the host by SciPy's L-BFGS-B.

The outer loop is not compiled: its program would take four times as long to compile as the
objective, for every new shape, and its few dozen steps cost a microsecond where the objective
costs a millisecond. On the host the inner solver's start is carried from step to step for free.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import minimize


class Evaluation(NamedTuple):
    """At one point: ``value ()`` and ``grad [q]`` of the outer loss; ``losses [F]`` of the folds.

    ``params`` leads with F, its last entry fitted to all rows of the problem; the residuals are
    the largest over the folds; ``lower`` is where the next inner solve starts.
    """

    value: Any
    grad: Any
    losses: Any
    params: Any
    inner_residual: Any
    linear_residual: Any
    lower: Any = None


# ``(theta [q], batch, lower) -> Evaluation``, a function of a module: it names the program.
Objective = Callable[[Array, Any, Any], Evaluation]


@partial(jax.jit, static_argnames="objective")
def _evaluate(objective: Objective, theta: Array, batch: Any, lower: Any) -> Evaluation:
    return objective(theta, batch, lower)


class Outer:
    """The outer loss of one problem as NumPy sees it; each call starts where the last one ended."""

    def __init__(self, objective: Objective, batch: Any, lower: Any = None) -> None:
        """``batch`` and ``lower`` move to the device once."""
        self.objective = objective
        self.batch, self.lower = to_device((batch, lower))

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Value, gradient, fits and evidence at ``theta``."""
        theta = np.asarray(theta, np.float64)
        found = _evaluate(self.objective, theta, self.batch, self.lower)
        if np.isfinite(found.value):
            self.lower = found.lower
        return found


def descend(
    outer: Outer,
    phi: np.ndarray,
    groups: np.ndarray,
    bounds: Any,
    *,
    max_iter: int,
    tol: float,
    least: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """``phi`` and the loss ``outer(phi[groups])`` at the start and after each step.

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

    def note(intermediate_result: Any) -> None:
        points.append(np.array(intermediate_result.x))
        values.append(float(intermediate_result.fun) * unit)

    options = {"maxiter": max_iter, "ftol": max(tol, least / unit), "gtol": 1e-9, "maxls": 30}
    minimize(
        scaled, phi, jac=True, method="L-BFGS-B", bounds=bounds, callback=note, options=options
    )
    return np.array([phi, *points]), np.array([float(first.value), *values])


def to_device(tree: Any) -> Any:
    """Arrays of JAX, floats in float64, once for all calls that use them."""
    return jax.tree.map(jnp.asarray, tree)


def to_host(tree: Any) -> Any:
    """NumPy arrays."""
    return jax.tree.map(np.asarray, tree)
