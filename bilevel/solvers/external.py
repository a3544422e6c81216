"""A solver that lives outside JAX, behind a callback to the host."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from bilevel import messages
from bilevel.problem import Loss, Problem
from bilevel.trees import PyTree


@dataclass(frozen=True)
class External:
    """Any function on NumPy arrays, for example a scikit-learn ``fit``; for ``Implicit``.

    ``fn(params, hyper, data) -> params`` minimises the inner problem itself, from ``params``, on
    the inner ``data``; one solver step is one call, so ``steps=1`` is usual. Under ``vmap`` the
    calls follow one another. ``fn`` must be a pure function, and must not call JAX.

    Parameters
    ----------
    fn : keep one function object: a new one is a new program, and compiles again.

    Raises
    ------
    TypeError : ``fn`` cannot be called.
    ValueError : an estimator that differentiates steps; params of another structure or shape.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, bilevel as bl
    >>> problem = bl.Problem(
    ...     lambda w, h, x: jnp.mean((x - w) ** 2) / 2 + h * w**2 / 2, lambda w, h, x: w
    ... )
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> solver = bl.External(lambda w, h, x: np.mean(x) / (1 + h))
    >>> bl.solve(problem, solver, 1.0, jnp.array(0.0), data, jax.random.key(0), steps=1)
    Array(1., dtype=float32)
    """

    fn: Callable[[PyTree, PyTree, PyTree], PyTree]

    def __post_init__(self) -> None:
        """Refuse what cannot be called."""
        if not callable(self.fn):
            raise TypeError(
                "External: fn must be a function (params, hyper, data) -> params on NumPy arrays, "
                f"got {type(self.fn).__name__}."
            )

    def why_not_unrolled(self, state: PyTree) -> str:
        """It is not JAX."""
        return "it runs outside JAX, which cannot differentiate it"

    def check(self, problem: Problem) -> None:
        """Takes every problem: what ``fn`` minimises is its own affair."""

    def init(self, params: PyTree, data: PyTree) -> tuple[()]:
        """Nothing is carried."""
        return ()

    def step(
        self, loss: Loss, params: PyTree, hyper: PyTree, data: PyTree, key: Array, state: Any
    ) -> tuple[PyTree, Any]:
        """One call of ``fn``; neither the loss nor the key is used."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        moved = jax.pure_callback(self._call, shapes, params, hyper, data, vmap_method="sequential")
        return moved, state

    def _call(self, params: PyTree, hyper: PyTree, data: PyTree) -> PyTree:
        arguments = jax.tree.map(np.asarray, (params, hyper, data))
        found, start = jax.tree.map(np.asarray, self.fn(*arguments)), arguments[0]
        if jax.tree.structure(found) == jax.tree.structure(start):
            found = jax.tree.map(lambda x, w: x.astype(w.dtype), found, start)
        messages.require_same("what External.fn returned", found, "params", start)
        return found


jax.tree_util.register_dataclass(External, data_fields=[], meta_fields=["fn"])
