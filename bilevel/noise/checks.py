"""What the theory of noise asks of a Hessian and a step size; tracers pass."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils import is_traced, require_below, require_definite


def require_hessian(owner: str, matrix: ArrayLike) -> Array:
    """Return a Hessian, validated to be positive definite: else there is no stationary state."""
    cure = (
        "Noise spreads without bound along flat or falling directions: add a penalty, use "
        "noise.transient.path for a finite number of steps, or noise.escape at a saddle."
    )
    return require_definite(owner, "hessian", matrix, cure)


def below_limit(owner: str, value: float | Array, limit: float | Array, what: str) -> None:
    """Raise unless ``value < limit``, the edge beyond which no stationary state exists."""
    require_below(
        f"{owner}: no stationary state exists", value, limit, what, "Take a smaller step size."
    )


def require_commuting(owner: str, **matrices: Array) -> None:
    """Raise unless two symmetric matrices commute (to rounding)."""
    (first, a), (second, b) = matrices.items()
    if is_traced((a, b)):
        return
    gap = float(np.abs(np.asarray(a @ b - b @ a)).max())
    size = float(np.linalg.norm(np.asarray(a)) * np.linalg.norm(np.asarray(b)))
    if gap > 1e3 * float(jnp.finfo(a.dtype).eps) * size:
        raise ValueError(
            f"{owner}: {first} and {second} must commute, their commutator has an entry of "
            f"{gap:.3g}. Use noise.steady_state.covariance, which needs no commutation."
        )
