"""SGD on the linear system (Grazzi et al., AISTATS 2021; Arbel and Mairal, ICLR 2022: AmIGO)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Schedule, as_setting, evaluate
from bilevel.linear.base import Matvec, Solution, as_operator, relative_residual
from bilevel.utils import PyTree, axpy, register_node, require_positive_int


@dataclass(frozen=True)
class SGDLinear:
    r"""SGD ``x <- x - s (H_k x - b)`` with ``H_k`` the Hessian on a fresh minibatch; warm started.

    Without full-data products, except one for the residual. Unbiased steps: ``x`` fluctuates around
    the solution with a variance of O(s), which ``average`` or a decreasing step reduces. Step k
    draws its batch, with replacement, from ``fold_in(key, k)``.

    Parameters
    ----------
    step_size : a positive number or ``fn(count)``; stable while ``s < 2 / L`` with ``L`` the
        curvature of minibatches, not only of all data.
    steps : minibatch products.
    batch_size : examples per product, at most n.
    average : return the mean over the last ``average`` steps; 0 returns the last.

    Raises
    ------
    ValueError : a step size that is not positive, counts out of range, a batch above n, an operator
        without minibatch products.

    Examples
    --------
    >>> import bilevel as bl
    >>> linear = bl.SGDLinear(step_size=0.05, steps=200, batch_size=32, average=100)
    >>> estimator = bl.Implicit(bl.SGD(step_size=0.1, batch_size=32), steps=200, linear=linear)
    """

    needs_symmetry: ClassVar[bool] = True

    step_size: float | Array | Schedule
    steps: int = 100
    batch_size: int = 32
    average: int = 0

    def __post_init__(self) -> None:
        """Normalise functions and validate counts."""
        object.__setattr__(self, "step_size", as_setting("SGDLinear", "step_size", self.step_size))
        if isinstance(self.step_size, Schedule) and self.step_size.sees_hyper:
            raise TypeError("SGDLinear: step_size must be a number or fn(count).")
        require_positive_int("SGDLinear", "steps", self.steps)
        require_positive_int("SGDLinear", "batch_size", self.batch_size)
        if not 0 <= self.average <= self.steps:
            raise ValueError(
                f"SGDLinear: average must lie between 0 and steps={self.steps}, got {self.average}."
            )

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array) -> Solution:
        """Iterate from ``x0``."""
        operator = as_operator(hessian)

        def advance(k: Array, x: PyTree) -> PyTree:
            image = operator.sample(x, jax.random.fold_in(key, k), self.batch_size)
            return axpy(-evaluate(self.step_size, k, None), axpy(-1, b, image), x)

        first = self.steps - self.average

        def averaged(k: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            x, mean = carry
            x = advance(k, x)
            return x, axpy(1 / (k - first + 1), axpy(-1, mean, x), mean)

        x = jax.lax.fori_loop(0, first, advance, x0)
        if self.average:
            _, x = jax.lax.fori_loop(first, self.steps, averaged, (x, x))
        counted = jnp.asarray(self.steps + 1, jnp.int32)
        return Solution(x, relative_residual(hessian, b, x), counted)


register_node(SGDLinear, data_fields=["step_size"], meta_fields=["steps", "batch_size", "average"])
