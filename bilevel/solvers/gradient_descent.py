"""Full-batch gradient descent."""

from dataclasses import dataclass

import jax

from bilevel.core import Loss
from bilevel.solvers.steps import (
    SolverStepSize,
    StepCount,
    advance_count,
    as_step_sizes,
    evaluate_step_size,
    init_count,
    measure_limit,
    restart_count,
)
from bilevel.utils import (
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
    step_size : a positive number, :class:`bilevel.Relative`, ``fn(count)`` or ``fn(count, hyper)``,
        whose count begins at 0 in every call (but see :func:`bilevel.Continued`); or a tree of them
        that is a prefix of ``params``, ``{"body": r, "head": s}``: one for each part. A function
        may return such a tree, too. Converges on a convex loss while its largest curvature
        L < 2 / step_size; ``1 / L`` keeps the error of the derivative monotone (Scieur, Gidel,
        Bertrand, Pedregosa, 2022).

    Raises
    ------
    ValueError : a step size that is not positive.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.GradientDescent(step_size=0.1)
    GradientDescent(step_size=0.1)
    """

    step_size: SolverStepSize

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_step_sizes("GradientDescent", self.step_size))

    def init(self, params: Params, data: DataTree) -> StepCount:
        """Return the step count, 0."""
        return init_count(self.step_size, params)

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: StepCount
    ) -> StepCount:
        """Return the state with the stability limit of a relative step size."""
        return measure_limit(state, loss, params, hyper, data)

    def refresh(self, state: StepCount) -> StepCount:
        """Return the state to begin a call with: a learned schedule begins anew."""
        return restart_count(state, self.step_size)

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: StepCount,
    ) -> tuple[Params, StepCount]:
        """Move along the gradient over all of ``data``; the key is not used."""
        direction = jax.grad(loss)(params, hyper, data)
        size = evaluate_step_size(self.step_size, state, hyper)
        return descend(size, direction, params), advance_count(state)

    def max_curvature(self, hyper: Hyper, state: StepCount) -> Scalar:
        """Return ``2 / step_size``; of several step sizes the largest."""
        return 2 / largest_entry(evaluate_step_size(self.step_size, state, hyper))


register_node(GradientDescent)
