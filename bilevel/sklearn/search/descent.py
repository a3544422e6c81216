"""Value and hypergradient of an outer loss, descended on the host by SciPy's L-BFGS-B.

The outer loop is not compiled: its few dozen steps cost microseconds where the objective costs a
millisecond, and on the host the inner solver's start is carried from step to step for free.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import OptimizeResult, minimize

_BOX = 4.0  # farthest that a logarithm goes in one descent, a factor of 55


class Evaluation(NamedTuple):
    """The outer loss at one point: ``value ()``, ``grad [q]``, and ``losses [F]`` of the folds.

    ``params`` leads with F, its last entry fitted to all rows of the problem; the residuals are
    the largest over the folds. ``share [F]`` weighs the folds in the value; ``None`` where a
    criterion needs none. ``params`` may be ``None`` where ``evaluate_exactly`` gives them.
    """

    value: Any
    grad: Any
    losses: Any
    params: Any
    inner_residual: Any
    linear_residual: Any
    share: Any = None


# An outer loss as NumPy sees it: logarithms of penalties ``[q]`` to an evaluation.
OuterFunction = Callable[[np.ndarray], Evaluation]


def minimise_outer(
    outer: OuterFunction,
    phi: np.ndarray,
    bounds: np.ndarray,
    *,
    start: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    max_iter: int,
    tol: float,
    least: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise ``outer(start + phi[groups])`` from ``phi`` on.

    By default ``start`` is 0 and each entry is a group. Returns ``phi`` and the loss at the start
    and after each step. Ends where a step gains less than ``tol`` of the loss, or than ``least``.
    """
    size, values, points = len(phi), [], []
    own = np.arange(size) if groups is None else groups
    base = np.zeros(len(own)) if start is None else start

    def evaluate(phi: np.ndarray) -> tuple[float, np.ndarray]:
        at = outer(base + phi[own])
        return float(at.value), np.bincount(own, np.asarray(at.grad), size)

    first, slope = evaluate(phi)
    # So scaled that the first trial moves the steepest entry by 1: the loss has no unit of its own.
    unit = float(np.max(np.abs(slope))) or 1.0

    def scaled(phi: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = evaluate(phi)
        if not np.isfinite(value) or not np.all(np.isfinite(grad)):
            return np.inf, np.zeros(size)
        return value / unit, grad / unit

    def note(intermediate_result: OptimizeResult) -> None:
        points.append(np.array(intermediate_result.x))
        values.append(float(intermediate_result.fun) * unit)

    # SciPy's ftol is relative to max(|value|, 1): of a loss that is small beside its slope, not.
    relative = max(tol * min(abs(first) / unit, 1.0), least / unit)
    # In boxes: a step of the first trials may else end where the loss is flat in a penalty, and
    # where it is flat it stays.
    at, left, last = phi, max_iter, np.inf
    while left > 0:
        box = np.clip(np.stack([at - _BOX, at + _BOX], 1), bounds[:, :1], bounds[:, 1:])
        options = {"maxiter": left, "ftol": relative, "gtol": 1e-9, "maxls": 30}
        found = minimize(
            scaled, at, jac=True, method="L-BFGS-B", bounds=box, callback=note, options=options
        )
        at, left = found.x, left - max(found.nit, 1)
        at_edge = (at <= box[:, 0]) & (at > bounds[:, 0]) | (at >= box[:, 1]) & (at < bounds[:, 1])
        if not at_edge.any() or last - found.fun <= relative * max(abs(found.fun), 1.0):
            break
        last = found.fun
    return np.array([phi, *points]), np.array([first, *values])
