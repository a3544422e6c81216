r"""Kronecker factors of the Gauss-Newton matrix, and its diagonal in their eigenbasis.

    u_i = J_i^T B_i^{1/2} e_i,   mean u_i u_i^T = U a U^T,   mean u_i^T u_i = V c V^T
    S = mean (U^T u_i V)^2,      v -> U ((U^T v V) / (S + penalty + damping)) V^T

for every leaf of the params as a matrix, its last axis against the others. George, Laurent,
Bouthillier, Ballas, Vincent, NeurIPS 2018; Martens, Grosse, ICML 2015; for influence functions
Grosse et al., 2023. The factors are those of whole gradients, so no layer has to be known.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.linear.base import Operator
from bilevel.linear.preconditioner import Inverse, floor_curvatures
from bilevel.utils import PyTree, register_node, require_positive_int


class _Block(NamedTuple):
    """Of one leaf: two rotations, ``[a, a]`` and ``[c, c]``, and curvatures ``[a, c]``."""

    left: Array
    right: Array
    curvatures: Array

    def solve(self, v: Array) -> Array:
        inside = self.left.T @ v.reshape(self.curvatures.shape) @ self.right
        return (self.left @ (inside / self.curvatures) @ self.right.T).reshape(v.shape)


@dataclass(frozen=True)
class EKFAC:
    """Eigenvalue-corrected Kronecker factors; the inner loss must be a :class:`bilevel.OutputLoss`.

    For networks: a leaf of ``a x c`` entries costs factors of ``a x a`` and ``c x c`` in place of
    its Hessian. About one product, and memory for ``rows`` gradients.

    Parameters
    ----------
    rows : inner rows, drawn at random, whose gradients make the factors.

    Raises
    ------
    ValueError : ``rows`` below 1; an inner loss that is no ``OutputLoss``; a solve without a key.

    Examples
    --------
    >>> import bilevel as bl
    >>> linear = bl.CG(tol=1e-4, preconditioner=bl.EKFAC())
    >>> estimator = bl.Implicit(bl.LBFGS(), steps=100, linear=bl.GaussNewton(linear), damping=1e-3)
    """

    rows: int = 256

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("EKFAC", "rows", self.rows)

    def invert(self, operator: Operator, like: PyTree, key: Array | None) -> Inverse:
        """Return the solution with the factors."""
        if operator.factors is None:
            raise ValueError(
                "EKFAC must know which part of the inner loss is the model: make Problem.inner a "
                "bl.OutputLoss(outputs, loss), without prox; or take HessianDiagonal."
            )
        if key is None:
            raise ValueError("EKFAC draws rows and signs: pass a key to solve(..., key).")
        vectors, penalty = operator.factors(key, self.rows)

        def make(v: Array, u: Array, p: Array) -> _Block:
            u = u.reshape(len(u), -1, v.shape[-1] if v.ndim else 1)
            left = jnp.linalg.eigh(jnp.einsum("iac,ibc->ab", u, u))[1]
            right = jnp.linalg.eigh(jnp.einsum("iac,iad->cd", u, u))[1]
            known = jnp.mean((left.T @ u @ right) ** 2, axis=0) + jnp.mean(p)
            return _Block(left, right, floor_curvatures(known, operator.damping, 1e-4))

        blocks = jax.tree.map(make, like, vectors, penalty)

        def apply(v: PyTree) -> PyTree:
            return jax.tree.map(lambda v, block: block.solve(v), v, blocks)

        return Inverse(apply, 1)


register_node(EKFAC, data_fields=[], meta_fields=["rows"])
