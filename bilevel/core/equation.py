r"""An equation in place of an inner loss: ``F(params, hyper, batch) = 0``, which no loss need have.

Every solver and estimator asks the inner problem for ``jax.grad(inner)`` and for derivatives of
that. :class:`Equation` is a function whose gradient in ``params`` is F by definition, so they ask
an equation the same. What is different is said by :attr:`Problem.is_equation`: the derivative of F
in ``params`` is not symmetric, that in ``hyper`` belongs to no loss, and there is no value.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import DataTree, Hyper, Params, PyTree, Scalar, norm, vdot

Residual = Callable[[Params, Hyper, DataTree], Params]


@dataclass(frozen=True)
class Equation:
    """``optimality(params, hyper, batch) = 0``, or ``params = fixed_point(params, hyper, batch)``.

    Called, it returns ``|F|^2 / 2``; its gradient in ``params`` is not that of this number but F.
    """

    fixed_point: Residual | None
    optimality: Residual | None

    def residual(self, params: Params, hyper: Hyper, batch: DataTree) -> Params:
        """Return F, like ``params``: what is 0 at the solution."""
        image = self.image(params, hyper, batch)
        if self.optimality is None:
            return jax.tree.map(lambda w, to: (w - to).astype(w.dtype), params, image)
        return jax.tree.map(lambda w, f: jnp.asarray(f).astype(w.dtype), params, image)

    def image(self, params: Params, hyper: Hyper, batch: DataTree) -> Params:
        """Return what the user's function does."""
        fn = self.fixed_point if self.optimality is None else self.optimality
        assert fn is not None
        return fn(params, hyper, batch)

    def __call__(self, params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
        """Return ``|F|^2 / 2``, whose ``jax.grad`` in ``params`` is F."""
        return _with_gradient(self, params, hyper, batch)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_gradient(equation: Equation, params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
    return norm(equation.residual(params, hyper, batch)) ** 2 / 2


@_with_gradient.defjvp
def _(equation: Equation, at: tuple, tangents: tuple) -> tuple[Array, Array]:
    value = _with_gradient(equation, *at)
    moved: PyTree = tangents[0]
    return value, vdot(equation.residual(*at), moved).astype(value.dtype)


def require_free_rows(
    equation: object, solver: object, params: Params, hyper: Hyper, rows: DataTree
) -> None:
    """Raise where the unknowns of an equation belong to rows, of which the solver sees some."""
    size, n = getattr(solver, "batch_size", None), jax.tree.leaves(rows)[0].shape[0]
    if not isinstance(equation, Equation) or size is None or n < 3:
        return
    few = min(max(size, 2), n - 1)  # a batch of one row would be broadcast

    def image(params: Params, hyper: Hyper, rows: DataTree) -> PyTree:
        return equation.image(params, hyper, jax.tree.map(lambda x: x[:few], rows))

    try:
        shapes = jax.tree.map(jnp.shape, jax.eval_shape(image, params, hyper, rows))
    except (TypeError, ValueError):
        shapes = None
    if shapes != jax.tree.map(jnp.shape, params):
        raise ValueError(
            f"{type(solver).__name__}(batch_size={size}) sees some rows at a time, and the "
            "equation does not take them: its unknowns belong to all rows. Take Picard, Anderson "
            "or Newton, or batch_size=None."
        )
