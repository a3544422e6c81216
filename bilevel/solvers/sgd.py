"""Stochastic gradient descent."""

from dataclasses import dataclass
from typing import TypeAlias

import jax

from bilevel.core import Loss, Relative, Setting, as_setting, evaluate
from bilevel.solvers.repeat import StepKey
from bilevel.solvers.sampling import Sampler, SamplerState
from bilevel.solvers.steps import (
    SolverStepSize,
    StepCount,
    advance_count,
    as_step_sizes,
    evaluate_step_size,
    init_count,
    measure_limit,
    plain_count,
    restart_count,
)
from bilevel.utils import (
    DataTree,
    Hyper,
    Number,
    Params,
    Scalar,
    axpy,
    descend,
    largest_entry,
    register_node,
    zeros_like,
)

SGDState: TypeAlias = tuple[StepCount, Params | None, SamplerState]  # count, velocity, sampler


@dataclass(frozen=True)
class SGD:
    r"""Minibatch SGD with heavy-ball or Nesterov momentum.

    ``v <- momentum v + g``, ``w <- w - step_size v`` with ``g`` the gradient of the inner loss on
    the batch (Nesterov: ``w <- w - step_size (g + momentum v)``), as in PyTorch and optax.

    Parameters
    ----------
    step_size : a positive number, :class:`bilevel.Relative`, ``fn(count)``, or ``fn(count, hyper)``
        when it is itself a hyperparameter, with a count that begins at 0 in every call (but see
        :func:`bilevel.Continued`); or a tree of them that is a prefix of ``params``, ``{"body": r,
        "head": s}``: one for each part. A function may return such a tree, too. Stable on average
        while curvature < 2 (1 + momentum) / step_size (Nesterov: over 1 + 2 momentum).
    batch_size : examples per step, at most n; ``None`` is the full batch.
    momentum : ``None`` for none (no velocity is kept), a number in [0, 1), or a function as for
        ``step_size``.
    nesterov : Nesterov's look-ahead instead of the heavy ball.
    sampling : ``"iid"`` (with replacement), ``"without_replacement"`` (different examples in every
        batch) or ``"epoch"`` (random permutations).

    Raises
    ------
    ValueError : a step size that is not positive, momentum outside [0, 1), an unknown sampling.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.SGD(step_size=0.1, batch_size=32, sampling="epoch").batch_size
    32
    """

    step_size: SolverStepSize
    batch_size: int | None = None
    momentum: Setting | None = None
    nesterov: bool = False
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_step_sizes("SGD", self.step_size))
        if callable(self.momentum) or isinstance(self.momentum, Relative):
            object.__setattr__(self, "momentum", as_setting("SGD", "momentum", self.momentum))
        elif isinstance(self.momentum, str | int | float) and not (
            isinstance(self.momentum, int | float) and 0 <= self.momentum < 1
        ):
            raise ValueError(f"SGD: momentum must lie in [0, 1), got {self.momentum!r}.")
        Sampler(self.batch_size, self.sampling)

    @property
    def sampler(self) -> Sampler:
        """How minibatches are drawn."""
        return Sampler(self.batch_size, self.sampling)

    def init(self, params: Params, data: DataTree) -> SGDState:
        """Return ``(count, velocity, sampler state)``."""
        velocity = None if self.momentum is None else zeros_like(params)
        sampler = self.sampler.init(data)
        return init_count(self.step_size, params), velocity, sampler

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: SGDState
    ) -> SGDState:
        """Return the state with the stability limit of a relative step size."""
        count, velocity, sampler = state
        momentum = self._momentum(count, hyper)
        count = measure_limit(
            count,
            loss,
            params,
            hyper,
            data,
            batch_size=self.batch_size,
            momentum=momentum,
            scale=1 / self._shrunk(momentum),
        )
        return count, velocity, sampler

    def drawn(self, data: DataTree, key: StepKey, state: SGDState) -> DataTree:
        """Return the minibatch that ``step`` with this key and state sees."""
        return self.sampler.draw(data, key, state[2])[0]

    def refresh(self, state: SGDState) -> SGDState:
        """Return the state to begin a call with: a learned schedule begins anew."""
        return restart_count(state[0], self.step_size, self.momentum), *state[1:]

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: StepKey,
        state: SGDState,
    ) -> tuple[Params, SGDState]:
        """Draw a batch and move along its gradient."""
        count, velocity, sampler = state
        batch, sampler = self.sampler.draw(data, key, sampler)
        direction = jax.grad(loss)(params, hyper, batch)
        if self.momentum is not None:
            momentum = self._momentum(count, hyper)
            velocity = axpy(momentum, velocity, direction)
            direction = axpy(momentum, velocity, direction) if self.nesterov else velocity
        params = descend(evaluate_step_size(self.step_size, count, hyper), direction, params)
        return params, (advance_count(count), velocity, sampler)

    def max_curvature(self, hyper: Hyper, state: SGDState) -> Scalar:
        """Return ``2 (1 + momentum) / step_size``; with Nesterov over ``1 + 2 momentum``."""
        momentum = self._momentum(state[0], hyper)
        step_size = largest_entry(evaluate_step_size(self.step_size, state[0], hyper))
        return 2 * (1 + momentum) / (self._shrunk(momentum) * step_size)

    def _momentum(self, count: StepCount, hyper: Hyper) -> Number:
        return 0.0 if self.momentum is None else evaluate(self.momentum, plain_count(count), hyper)

    def _shrunk(self, momentum: Number) -> Number:
        """Return by how much Nesterov's look-ahead shrinks the limit of the heavy ball."""
        return 1 + 2 * momentum if self.nesterov else 1.0


register_node(
    SGD,
    data_fields=["step_size", "momentum"],
    meta_fields=["batch_size", "nesterov", "sampling"],
)
