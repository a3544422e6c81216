"""Stochastic gradient descent."""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp

from bilevel.core import Loss, Setting, as_setting, evaluate
from bilevel.solvers.sampling import Sampler, SamplerState
from bilevel.utils import (
    Counter,
    DataTree,
    Hyper,
    Key,
    Params,
    Scalar,
    axpy,
    descend,
    largest_entry,
    register_node,
    zeros_like,
)

SGDState: TypeAlias = tuple[Counter, Params | None, SamplerState]  # count, velocity, sampler


@dataclass(frozen=True)
class SGD:
    r"""Minibatch SGD with heavy-ball or Nesterov momentum.

    ``v <- momentum v + g``, ``w <- w - step_size v`` with ``g`` the gradient of the inner loss on
    the batch (Nesterov: ``w <- w - step_size (g + momentum v)``), as in PyTorch and optax.

    Parameters
    ----------
    step_size : a positive number, ``fn(count)``, or ``fn(count, hyper)`` when the step size is
        itself a hyperparameter; a function may return a tree like ``params``, one step size per
        leaf or per entry. Stable on average while curvature < 2 (1 + momentum) / step_size
        (Nesterov: over 1 + 2 momentum).
    batch_size : examples per step, at most n; ``None`` is the full batch.
    momentum : ``None`` for none (no velocity is kept), a number in [0, 1), or a function as for
        ``step_size``.
    nesterov : Nesterov's look-ahead instead of the heavy ball.
    sampling : ``"iid"`` (with replacement) or ``"epoch"`` (random permutations).

    Raises
    ------
    ValueError : a step size that is not positive, momentum outside [0, 1), an unknown sampling.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.SGD(step_size=0.1, batch_size=32, sampling="epoch").batch_size
    32
    """

    step_size: Setting
    batch_size: int | None = None
    momentum: Setting | None = None
    nesterov: bool = False
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_setting("SGD", "step_size", self.step_size))
        if callable(self.momentum):
            object.__setattr__(self, "momentum", as_setting("SGD", "momentum", self.momentum))
        elif isinstance(self.momentum, str | int | float) and not (
            isinstance(self.momentum, int | float) and 0 <= self.momentum < 1
        ):
            raise ValueError(f"SGD: momentum must lie in [0, 1), got {self.momentum!r}.")
        Sampler(self.batch_size, self.sampling)

    def init(self, params: Params, data: DataTree) -> SGDState:
        """Return ``(count, velocity, sampler state)``."""
        velocity = None if self.momentum is None else zeros_like(params)
        return (
            jnp.zeros((), jnp.int32),
            velocity,
            Sampler(self.batch_size, self.sampling).init(data),
        )

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: SGDState
    ) -> tuple[Params, SGDState]:
        """Draw a batch and move along its gradient."""
        count, velocity, sampler = state
        batch, sampler = Sampler(self.batch_size, self.sampling).draw(data, key, sampler)
        direction = jax.grad(loss)(params, hyper, batch)
        if self.momentum is not None:
            momentum = evaluate(self.momentum, count, hyper)
            velocity = axpy(momentum, velocity, direction)
            direction = axpy(momentum, velocity, direction) if self.nesterov else velocity
        params = descend(evaluate(self.step_size, count, hyper), direction, params)
        return params, (count + 1, velocity, sampler)

    def max_curvature(self, hyper: Hyper, state: SGDState) -> Scalar:
        """Return ``2 (1 + momentum) / step_size``; with Nesterov over ``1 + 2 momentum``."""
        momentum = 0.0 if self.momentum is None else evaluate(self.momentum, state[0], hyper)
        shrunk = 1 + 2 * momentum if self.nesterov else 1
        step_size = largest_entry(evaluate(self.step_size, state[0], hyper))
        return 2 * (1 + momentum) / (shrunk * step_size)


register_node(
    SGD,
    data_fields=["step_size", "momentum"],
    meta_fields=["batch_size", "nesterov", "sampling"],
)
