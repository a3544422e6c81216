"""What formulas ask of numbers and matrices; tracers pass, as they have no value."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils.trees import is_inexact, is_traced


def require_symmetric(owner: str, name: str, matrix: ArrayLike) -> Array:
    """Return ``matrix`` as an array ``[d, d]``, validated to be square, finite and symmetric."""
    array = jnp.asarray(matrix)
    array = array if is_inexact(array) else array.astype(float)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"{owner}: {name} must be a square matrix [d, d], got {array.shape}.")
    if not is_traced(array):
        size = _largest(owner, name, array)
        if np.abs(np.asarray(array - array.T)).max(initial=0.0) > 100 * _eps(array) * size:
            raise ValueError(
                f"{owner}: {name} must be symmetric. If it was estimated, use (A + A.T) / 2."
            )
    return array


def require_semi_definite(owner: str, name: str, matrix: ArrayLike, cure: str = "") -> Array:
    """Return a symmetric ``matrix``, validated to have no negative eigenvalue beyond rounding."""
    array = require_symmetric(owner, name, matrix)
    if not is_traced(array) and (low := _lowest(array)) < -_rounding(array):
        raise ValueError(
            f"{owner}: {name} must be positive semi-definite, its lowest eigenvalue is {low:.3g}. "
            f"{cure or 'A covariance cannot be indefinite: was a Hessian passed in its place?'}"
        )
    return array


def require_definite(owner: str, name: str, matrix: ArrayLike, cure: str = "") -> Array:
    """Return a symmetric ``matrix``, validated to have positive eigenvalues beyond rounding."""
    array = require_symmetric(owner, name, matrix)
    if not is_traced(array) and (low := _lowest(array)) <= _rounding(array):
        kind = "singular" if low >= -_rounding(array) else "indefinite"
        raise ValueError(
            f"{owner}: {name} is {kind} (lowest eigenvalue {low:.3g}), but must be positive "
            f"definite. {cure or 'Restrict it to the directions of positive curvature.'}"
        )
    return array


def require_momentum(owner: str, value: float | Array) -> float | Array:
    """Return a heavy-ball momentum or an array of them, validated to lie in [0, 1)."""
    if not is_traced(value) and not np.all((np.asarray(value) >= 0) & (np.asarray(value) < 1)):
        raise ValueError(f"{owner}: momentum must lie in [0, 1), got {value}.")
    return value


def require_positive_scalars(owner: str, **values: float | Array) -> None:
    """Validate scalars to be positive and finite."""
    for name, value in values.items():
        if not is_traced(value) and (jnp.ndim(value) or not 0 < float(value) < np.inf):
            raise ValueError(f"{owner}: {name} must be a positive finite number, got {value}.")


def require_below(
    owner: str, value: float | Array, limit: float | Array, what: str, cure: str
) -> None:
    """Raise unless ``value < limit``."""
    if not is_traced((value, limit)) and not float(value) < float(limit):
        raise ValueError(
            f"{owner}: {what} is {float(value):.4g}, and must be below {float(limit):.4g}. {cure}"
        )


def require_same_size(owner: str, **matrices: Array) -> None:
    """Raise unless all matrices are of one shape."""
    if len({matrix.shape for matrix in matrices.values()}) > 1:
        listed = ", ".join(f"{name} {matrix.shape}" for name, matrix in matrices.items())
        raise ValueError(f"{owner}: the matrices must have one size, got {listed}.")


def _largest(owner: str, name: str, array: Array) -> float:
    values = np.abs(np.asarray(array))
    if not np.isfinite(values).all():
        raise ValueError(f"{owner}: {name} has NaN or infinite entries.")
    return float(values.max(initial=0.0))


def _eps(array: Array) -> float:
    return float(jnp.finfo(array.dtype).eps)


def _lowest(array: Array) -> float:
    return float(np.linalg.eigvalsh(np.asarray(array, float)).min(initial=np.inf))


def _rounding(array: Array) -> float:
    return 10 * array.shape[0] * _eps(array) * float(np.abs(np.asarray(array)).max(initial=0.0))
