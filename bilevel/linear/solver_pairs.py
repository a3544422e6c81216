"""The inverse Hessian that the inner solver has built on its way, shared with the adjoint."""

from dataclasses import dataclass

from jax import Array

from bilevel.linear.base import Operator
from bilevel.linear.preconditioner import Inverse
from bilevel.utils import PyTree, register_node


@dataclass(frozen=True)
class SolverPairs:
    r"""The curvature pairs of the inner solver :class:`bilevel.LBFGS`: no product at all.

    Ramzi, Mannel, Bai, Starck, Ciuciu, Moreau, "SHINE", ICLR 2022, who take it for the inverse; as
    a preconditioner it leaves the answer as exact as it was. ``LBFGS`` drops its pairs once the
    loss is at rounding: give it a ``tol`` at which it stops before.

    Raises
    ------
    ValueError : an inner solver without pairs.

    Examples
    --------
    >>> import bilevel as bl
    >>> linear = bl.CG(tol=1e-6, preconditioner=bl.SolverPairs())
    >>> estimator = bl.Implicit(bl.LBFGS(memory=20, tol=1e-5), steps=100, linear=linear)
    """

    def invert(self, operator: Operator, like: PyTree, key: Array | None) -> Inverse:
        """Return the solver's own inverse."""
        if operator.inverse is None:
            raise ValueError(
                "SolverPairs takes the curvature pairs of the inner solver, and there are none. "
                "Use Implicit(LBFGS(...), linear=CG(preconditioner=SolverPairs())) on a problem "
                "without prox, or the preconditioner Diagonal."
            )
        return Inverse(operator.inverse, 0)


register_node(SolverPairs, data_fields=[], meta_fields=[])
