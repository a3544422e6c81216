r"""Will it differentiate? How adjoints shrink or grow along the inner steps.

Reverse mode multiplies the outer gradient by the transposed derivative of every step. Over K steps
its norm goes from ``|a_K|`` to ``|a_0|``, which is the derivative residual, and

    log(|a_0| / |a_K|) / K

tends to the top Lyapunov exponent of the iteration: below 0 derivatives converge, at 0 they take
for ever, above 0 they explode, however good the loss looks. On a quadratic the factor per step is
``1 - step_size * curvature`` of the slowest direction.
"""

import math
from typing import NamedTuple

from bilevel.core import Estimator, Evidence
from bilevel.estimators import Reverse, innermost_estimator

_GOAL = 1e-3  # of the derivative residual, as good as converged
_SLOW = 10  # times the steps taken: whoever needs more had better not unroll
_GROWN = 2.0  # a residual above this is growth, and not the first steps of a slow decay


class Growth(NamedTuple):
    """What the adjoints of an unrolled solve say of its derivative.

    Parameters
    ----------
    rate : factor by which the adjoint's norm changes per step, on average.
    residual : that norm at the first step over that at the last.
    steps : the steps between them.
    """

    rate: float
    residual: float
    steps: int

    @property
    def exponent(self) -> float:
        """Return the top Lyapunov exponent of the iteration, per step."""
        return math.log(self.rate) if self.rate > 0 else -math.inf

    @property
    def explodes(self) -> bool:
        """Return whether derivatives grow along the solve."""
        return not self.residual <= _GROWN

    @property
    def further_steps(self) -> float:
        """Return how many more steps it takes to a residual of 1e-3, at the same rate."""
        if self.residual <= _GOAL:
            return 0.0
        return math.inf if self.rate >= 1 else math.log(_GOAL / self.residual) / self.exponent

    @property
    def advice(self) -> str:
        """Return the finding in words, with what follows from it."""
        if self.explodes:
            return (
                "explodes: differentiate the last steps only (truncate), start the derivative "
                "late, take a smaller step size, or use PES"
            )
        if not self.further_steps:
            return "has converged"
        if self.further_steps <= _SLOW * self.steps:
            return f"converges: about {math.ceil(self.further_steps)} more steps for {_GOAL:g}"
        return "slow: use an implicit estimator, a larger step size, or momentum"

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"factor {self.rate:.4g} a step (Lyapunov exponent {self.exponent:.2g}), "
            f"{self.residual:.1e} after {self.steps} steps: {self.advice}"
        )


def diagnose_growth(estimator: Estimator, evidence: Evidence) -> Growth | None:
    """Return how adjoints grow along the steps of a reverse estimator, ``None`` for any other.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> estimator = bl.Reverse(bl.GradientDescent(0.1), steps=10)
    >>> evidence = bl.Evidence(derivative_residual=jnp.array(0.9) ** 10)
    >>> print(diagnose_growth(estimator, evidence))
    factor 0.9 a step (Lyapunov exponent -0.11), 3.5e-01 after 10 steps: converges: about 56 more \
steps for 0.001
    """
    inside = innermost_estimator(estimator)
    if evidence.derivative_residual is None or not isinstance(inside, Reverse):
        return None
    steps = inside.steps if inside.truncate is None else inside.truncate
    residual = float(evidence.derivative_residual)
    residual = residual if math.isfinite(residual) else math.inf
    return Growth(residual ** (1 / steps), residual, steps)
