"""A preconditioner from the diagonal of the operator, by random products."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.linear.base import Operator
from bilevel.linear.preconditioner import Inverse, floor_curvatures
from bilevel.utils import PyTree, register_node, require_positive_int


@dataclass(frozen=True)
class HessianDiagonal:
    r"""``v -> v / d`` with the diagonal ``d`` estimated by random signs: ``mean_k z_k * H z_k``.

    Bekas, Kokiopoulou, Saad, Applied Numerical Mathematics 2007. The Gauss-Newton matrix takes the
    place of ``H`` where the inner loss is a :class:`bilevel.OutputLoss`: its diagonal is positive.
    With as many probes as params the diagonal is exact. It helps where params have different
    scales, not where they work together.

    Parameters
    ----------
    probes : number of products.

    Raises
    ------
    ValueError : ``probes`` below 1; a solve without a key.

    Examples
    --------
    >>> import bilevel as bl, jax, jax.numpy as jnp
    >>> H, b = jnp.diag(jnp.array([1.0, 1e4])), jnp.array([1.0, 1e4])
    >>> linear = bl.CG(tol=1e-6, preconditioner=bl.HessianDiagonal(probes=1))
    >>> linear.solve(lambda v: H @ v, b, jnp.zeros(2), jax.random.key(0)).x.round(4)
    Array([1., 1.], dtype=float32)
    """

    probes: int = 10

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("HessianDiagonal", "probes", self.probes)

    def invert(self, operator: Operator, like: PyTree, key: Array | None) -> Inverse:
        """Return the division by the estimated diagonal."""
        if key is None:
            raise ValueError("HessianDiagonal draws random signs: pass a key to solve(..., key).")
        product = operator.product if operator.gauss_newton is None else operator.gauss_newton()
        product = getattr(product, "product", product)
        flat, unravel = ravel_pytree(like)
        if self.probes < flat.size:
            probes = jax.random.rademacher(key, (self.probes, flat.size), flat.dtype)
        else:
            probes = jnp.eye(flat.size, dtype=flat.dtype)

        def look(total: Array, z: Array) -> tuple[Array, None]:
            return total + z * ravel_pytree(product(unravel(z)))[0], None

        total, _ = jax.lax.scan(look, jnp.zeros_like(flat), probes)
        share = 1.0 if self.probes >= flat.size else 1 / self.probes
        diagonal = floor_curvatures(share * total, operator.damping, 1e-3)
        return Inverse(lambda v: unravel(ravel_pytree(v)[0] / diagonal), len(probes))


register_node(HessianDiagonal, data_fields=[], meta_fields=["probes"])
