"""Full-batch gradient descent."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bilevel.core import Loss, Setting, as_setting, evaluate
from bilevel.utils import (
    Counter,
    DataTree,
    Hyper,
    Key,
    Params,
    Scalar,
    descend,
    largest_entry,
    register_node,
)


@dataclass(frozen=True)
class GradientDescent:
    r"""Deterministic gradient descent on all inner examples, ``w <- w - step_size grad(w)``.

    Parameters
    ----------
    step_size : a positive number, ``fn(count)`` or ``fn(count, hyper)``; a function may return a
        tree like ``params``, one step size per leaf or per entry. Converges on a convex
        loss while its largest curvature L < 2 / step_size; ``1 / L`` keeps the error of the
        derivative monotone (Scieur, Gidel, Bertrand, Pedregosa, 2022).

    Raises
    ------
    ValueError : a step size that is not positive.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.GradientDescent(step_size=0.1)
    GradientDescent(step_size=0.1)
    """

    step_size: Setting

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(
            self, "step_size", as_setting("GradientDescent", "step_size", self.step_size)
        )

    def init(self, params: Params, data: DataTree) -> Counter:
        """Return the step count, 0."""
        return jnp.zeros((), jnp.int32)

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: Counter,
    ) -> tuple[Params, Counter]:
        """Move along the gradient over all of ``data``; the key is not used."""
        direction = jax.grad(loss)(params, hyper, data)
        return descend(evaluate(self.step_size, state, hyper), direction, params), state + 1

    def max_curvature(self, hyper: Hyper, state: Counter) -> Scalar:
        """Return ``2 / step_size``; of several step sizes the largest."""
        return 2 / largest_entry(evaluate(self.step_size, state, hyper))


register_node(GradientDescent)
