"""Losses that compute in a shorter type: params, sums over steps and the adjoint keep their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from bilevel.utils import PyTree, is_inexact

_SHORT = ("bfloat16", "float32", "float64")


@dataclass(frozen=True)
class InDtype:
    """A function of ``(params, hyper, batch, ...)`` that computes in another dtype.

    Params and batch are cast on the way in, what it returns and every gradient to the dtype of
    ``params`` on the way out. Hyperparameters, model state and key are as they were.
    """

    fn: Callable[..., PyTree]
    dtype: Any

    def __call__(self, params: PyTree, hyper: PyTree, batch: PyTree, *rest: PyTree) -> PyTree:
        """Return what the function returns, in the dtype of the params."""
        exact = jnp.result_type(*jax.tree.leaves(params))
        out = self.fn(_cast(params, self.dtype), hyper, _cast(batch, self.dtype), *rest)
        return jax.tree.map(lambda x: x.astype(exact) if x.dtype == self.dtype else x, out)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x, dtype) if is_inexact(x) else x, tree)


def compute_in(loss: Any, dtype: Any) -> Any:
    """Return the loss computing in ``dtype``; ``None`` undoes it. One with parts does it itself."""
    own = getattr(loss, "in_dtype", None)
    if own is not None:
        return own(dtype)
    fn = loss.fn if isinstance(loss, InDtype) else loss
    return fn if dtype is None else InDtype(fn, dtype)


def require_compute_dtype(dtype: Any) -> None:
    """Raise ``ValueError`` for a dtype whose range gradients fall out of."""
    if jnp.dtype(dtype).name not in _SHORT:
        raise ValueError(
            f"Problem: compute_dtype={jnp.dtype(dtype).name} must be one of {', '.join(_SHORT)}. "
            "float16 would need its losses scaled, so that gradients do not vanish; bfloat16 has "
            "the range of float32."
        )
