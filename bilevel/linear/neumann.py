"""The truncated Neumann series (Lorraine, Vicol, Duvenaud, AISTATS 2020)."""

from dataclasses import dataclass

import jax
from jax import Array

from bilevel.linear.base import Matvec, Solution, relative_residual
from bilevel.linear.step_size import require_step_size, stable_step
from bilevel.utils import PyTree, axpy, register_node, require_positive_int


@dataclass(frozen=True)
class Neumann:
    r"""The series ``x = s sum_{i < terms} (I - s H)^i b``.

    ``H^{-1} b`` in the end if ``0 < s H < 2``.

    A fixed cost, and a fixed bias: the relative residual is ``|(I - s H)^terms b| / |b|``, hence
    ``(1 - 1 / kappa)^terms`` in the direction of smallest curvature when ``s = 1 / L``. On an
    ill-conditioned system it is far from done after any affordable number of terms, and the
    residual says so. It always starts at 0: no warm start.

    Parameters
    ----------
    terms : number of terms, each one product.
    step_size : ``s``; ``None`` measures ``1 / L`` by power iteration (21 more products).

    Raises
    ------
    ValueError : ``terms`` below 1, a step size that is not positive.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> H, b = jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 4.0])
    >>> series = bl.Neumann(terms=2, step_size=0.25)
    >>> series.solve(lambda v: H @ v, b, jnp.zeros(2)).x  # 1 - 0.75^2 of the first entry
    Array([0.4375, 1.    ], dtype=float32)
    """

    terms: int = 100
    step_size: float | Array | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Neumann", "terms", self.terms)
        require_step_size("Neumann", self.step_size)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array | None = None) -> Solution:
        """Sum the series; ``x0`` is not used, the key serves to measure the step size."""
        step, used = stable_step("Neumann", self.step_size, hessian, b, key)

        def add(_: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            x, term = carry
            term = axpy(-step, hessian(term), term)
            return axpy(step, term, x), term

        first = jax.tree.map(lambda leaf: (step * leaf).astype(leaf.dtype), b)
        x, _ = jax.lax.fori_loop(0, self.terms - 1, add, (first, b))
        return Solution(x, relative_residual(hessian, b, x), self.terms + used)


register_node(Neumann, data_fields=["step_size"], meta_fields=["terms"])
