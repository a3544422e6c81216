"""Power iteration: the largest eigenvalue of a symmetric operator, from products alone."""

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import Matvec, unit
from bilevel.utils import PyTree, norm, vdot
from bilevel.utils.validation import require_positive

_STEPS = 20  # enough to come within a few per cent, which a step size does not feel


def largest_eigenvalue(matvec: Matvec, like: PyTree, key: Array, steps: int = _STEPS) -> Array:
    """Largest eigenvalue in modulus of a symmetric operator on trees like ``like``; ``()``.

    Its modulus is a lower bound that ``steps + 1`` products bring close: the Rayleigh quotient of
    the last vector.
    """

    def normalise(v: PyTree) -> PyTree:
        return unit(v, norm(v))

    v = normalise(gaussian(like, key))
    v = jax.lax.fori_loop(0, steps, lambda _, v: normalise(matvec(v)), v)
    return vdot(v, matvec(v))


def gaussian(like: PyTree, key: Array) -> PyTree:
    """Independent standard normal entries, like ``like``."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, draws)


def require_step_size(owner: str, step_size: float | Array | None) -> None:
    """Raise on a given step size that is not positive; ``None`` stands for a measured one."""
    if step_size is not None:
        require_positive(owner, "step_size", step_size)


def stable_step(
    owner: str, step_size: float | Array | None, matvec: Matvec, b: PyTree, key: Array | None
) -> tuple[Array, int]:
    """``(step, products used)``: the given step, or 1 / the largest eigenvalue, measured."""
    if step_size is not None:
        return jnp.asarray(step_size), 0
    if key is None:
        raise ValueError(f"{owner} needs a random key to measure its step size, or step_size=.")
    L = jnp.abs(largest_eigenvalue(matvec, b, key))
    return jnp.where(L > 0, 1 / jnp.where(L > 0, L, 1), 1), _STEPS + 1  # of 0 any step will do
