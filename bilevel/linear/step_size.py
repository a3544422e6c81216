"""The step size of first-order linear solvers: given, or measured by power iteration."""

import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import Matvec
from bilevel.linear.eigenvalues import POWER_STEPS, largest_eigenvalue
from bilevel.utils import PyTree, require_positive


def require_step_size(owner: str, step_size: float | Array | None) -> None:
    """Validate that a given step size is positive; ``None`` stands for a measured one."""
    if step_size is not None:
        require_positive(owner, "step_size", step_size)


def stable_step(
    owner: str, step_size: float | Array | None, matvec: Matvec, b: PyTree, key: Array | None
) -> tuple[Array, int]:
    """Return ``(step, products used)``: the given step, or 1 / the largest eigenvalue, measured."""
    if step_size is not None:
        return jnp.asarray(step_size), 0
    if key is None:
        raise ValueError(f"{owner} needs a random key to measure its step size, or step_size=.")
    L = jnp.abs(largest_eigenvalue(matvec, b, key))
    return jnp.where(L > 0, 1 / jnp.where(L > 0, L, 1), 1), POWER_STEPS + 1  # of 0 any step will do
