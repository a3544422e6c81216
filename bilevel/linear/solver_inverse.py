"""The inverse Hessian that the inner solver has built on its way, shared with the adjoint."""

from dataclasses import dataclass

from jax import Array

from bilevel.linear.base import Operator
from bilevel.linear.preconditioner import Inverse
from bilevel.utils import PyTree, register_node


@dataclass(frozen=True)
class SolverInverse:
    r"""What the inner solver divides gradients by: no product at all.

    The curvature pairs of :class:`bilevel.LBFGS` (Ramzi et al., "SHINE", ICLR 2022), the root of
    the squared gradients of ``Optax(optax.adam(...))`` and its kin (Choe et al., "SAMA", NeurIPS
    2023). There they stand for the inverse; here the answer stays as exact as it was. ``LBFGS``
    drops its pairs once the loss is at rounding: give it a ``tol`` at which it stops before.

    Raises
    ------
    ValueError : an inner solver that knows no inverse, or a problem with ``prox``.

    Examples
    --------
    >>> import bilevel as bl
    >>> linear = bl.CG(tol=1e-6, preconditioner=bl.SolverInverse())
    >>> estimator = bl.Implicit(bl.LBFGS(memory=20, tol=1e-5), steps=100, linear=linear)
    """

    def invert(self, operator: Operator, like: PyTree, key: Array | None) -> Inverse:
        """Return the solver's own inverse."""
        if operator.inverse is None:
            raise ValueError(
                "SolverInverse is what the inner solver knows of the inverse Hessian, and this one "
                "knows nothing: use `Implicit(LBFGS(...))` or `Optax(optax.adam(...))` on a "
                "problem without prox, or the preconditioner `HessianDiagonal`."
            )
        return Inverse(operator.inverse, 0)


register_node(SolverInverse, data_fields=[], meta_fields=[])
