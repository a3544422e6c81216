"""The operator as a matrix, and its Cholesky factors: exact, for few parameters."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.linear.base import Matvec, Solution, as_operator, relative_residual
from bilevel.linear.eigenvalues import largest_eigenvalue
from bilevel.linear.singular import factorise
from bilevel.utils import PyTree, basis, is_traced, register_node, require_positive_int, size

_POWER_STEPS = 50
_WORST = 0.1  # condition number times rounding: above it no digit of a solution is right


@dataclass(frozen=True)
class Dense:
    r"""Cholesky factorisation of a symmetric positive definite operator, refined once.

    Costs one product per parameter and memory for two matrices; exact to rounding. Reports the
    condition number: the largest over the smallest eigenvalue, each by 50 power iterations on
    the matrix or its factors (a lower bound, mostly within a few per cent). What is singular is
    judged by that in units in which the diagonal is about 1.

    A null space in which ``b`` has no part (parameters that the inner loss does not use, equal
    columns) costs nothing: the solution has no part in it either, and the condition number is that
    of the rest. Where the operator is indefinite, or singular to working precision and ``b`` does
    touch its null space, the solution is NaN and its residual infinite, which
    :func:`bilevel.tune` stops on. Outside compiled code it is an error.

    Parameters
    ----------
    max_size : refuse to form a matrix of more rows than this.

    Raises
    ------
    ValueError : more than ``max_size`` parameters; outside compiled code, an operator that is not
        positive definite.

    Examples
    --------
    >>> import bilevel as bl, jax, jax.numpy as jnp
    >>> H, b, key = jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 4.0]), jax.random.key(0)
    >>> solution = bl.Dense().solve(lambda v: H @ v, b, jnp.zeros(2), key)
    >>> solution.x, solution.condition.round(2)
    (Array([1., 1.], dtype=float32), Array(4., dtype=float32))
    """

    needs_symmetry: ClassVar[bool] = True

    max_size: int = 3000

    def __post_init__(self) -> None:
        """Validate the largest size."""
        require_positive_int("Dense", "max_size", self.max_size)

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array) -> Solution:
        """Return factorise; ``x0`` is not used, the key starts the power iterations."""
        n = size(b)
        if n > self.max_size:
            raise ValueError(
                f"Dense would form a {n} x {n} matrix, above max_size={self.max_size}. Take CG, "
                "which needs products only, or raise max_size if that many products and that "
                "much memory are meant."
            )
        matrix = _matrix(hessian, b)
        factor = factorise(matrix)
        right, unravel = ravel_pytree(b)

        def measure_condition(unit: Array) -> Array:
            # Two power iterations, O(n^2) each, in place of an eigendecomposition.
            largest = largest_eigenvalue(
                lambda v: unit * (matrix @ (unit * v)), right, key, _POWER_STEPS
            )
            inverse = largest_eigenvalue(
                lambda v: factor.solve(v / unit) / unit, right, key, _POWER_STEPS
            )
            return largest * inverse

        # That of the matrix, and that which decides what rounding leaves, whatever the units.
        units = jnp.stack([jnp.ones_like(factor.scale), factor.scale])
        condition, decisive = jax.vmap(measure_condition)(units)
        x = factor.solve(right)
        # One step of iterative refinement wins back the digits that the factorisation lost.
        x = x + factor.solve(right - matrix @ x)
        touched = factor.misses(right - matrix @ x, jnp.linalg.norm(factor.scale * right))
        regular = (decisive < _WORST / jnp.finfo(matrix.dtype).eps) & ~touched
        if not is_traced(regular) and not regular:
            raise ValueError(
                "Dense: the matrix is indefinite, or singular to working precision (condition "
                f"number {float(decisive):.3g}). At a minimum of the inner loss it would be "
                "positive definite: solve the inner problem further, add a penalty or damping, or "
                "take MINRES."
            )
        x = unravel(jnp.where(regular, x, jnp.nan).astype(right.dtype))
        residual = jnp.where(regular, relative_residual(hessian, b, x), jnp.inf)
        return Solution(x, residual, jnp.asarray(n + 1, jnp.int32), condition)


register_node(Dense, data_fields=[], meta_fields=["max_size"])


def _matrix(hessian: Matvec, b: PyTree) -> Array:
    """Return ``[n, n]``, the identity on coordinates outside the operator's support."""
    columns = jax.vmap(lambda v: ravel_pytree(hessian(v))[0])(basis(b))
    support = as_operator(hessian).support
    if support is None:
        return columns
    outside = 1 - ravel_pytree(support)[0]
    return columns * (1 - outside) + jnp.diag(outside).astype(columns.dtype)
