"""Step sizes that change: with the step count, or with the hyperparameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import Hyper, register_node
from bilevel.utils.validation import require_positive


@jax.tree_util.register_static
@dataclass(frozen=True)
class Schedule:
    """A user's function in place of a number: ``fn(count)``, or ``fn(count, hyper)``."""

    fn: Callable[..., Any]
    sees_hyper: bool

    def __call__(self, count: Array, hyper: Hyper) -> Any:
        """The number at step ``count`` (``()``, int32)."""
        return self.fn(count, hyper) if self.sees_hyper else self.fn(count)


@dataclass(frozen=True)
class InverseTime:
    r"""The decreasing step of the theory, ``eta_k = 2 / (mu (k + 8 (L / mu)^2))``.

    ``mu`` and ``L`` bound the inner curvature from below and above. Under it the squared error of
    the derivative of SGD falls as 1/k (Iutzeler, Pauwels, Vaiter, 2024, Theorem 2.2).

    Examples
    --------
    >>> import bilevel as bl
    >>> solver = bl.SGD(step_size=bl.InverseTime(mu=0.5, L=2.0), batch_size=8)
    """

    mu: Any
    L: Any

    def __post_init__(self) -> None:
        """Refuse curvatures that are not positive."""
        require_positive("InverseTime", "mu", self.mu)
        require_positive("InverseTime", "L", self.L)

    def __call__(self, count: Array, hyper: Hyper) -> Any:
        """The step size at step ``count``."""
        del hyper
        return 2 / (self.mu * (count + 8 * (self.L / self.mu) ** 2))


@dataclass(frozen=True)
class Decay:
    """``start / (k + 1)^power`` at step ``k``, the schedule of the stochastic bilevel methods.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.Decay(0.1, 0.5)(99)
    0.01
    """

    start: Any
    power: Any

    def __post_init__(self) -> None:
        """Refuse a schedule that is not positive."""
        require_positive("Decay", "start", self.start)

    def __call__(self, count: Any, hyper: Hyper = None) -> Any:
        """The value at step ``count``."""
        del hyper
        return self.start / (count + 1) ** self.power


register_node(InverseTime)
register_node(Decay)


def as_setting(owner: str, name: str, value: Any) -> Any:
    """Normalise a setting: numbers stay leaves, functions become static :class:`Schedule` nodes."""
    if isinstance(value, Schedule | InverseTime | Decay):
        return value
    if callable(value):
        return as_schedule(owner, name, value)
    require_positive(owner, name, value)
    return value


def as_schedule(owner: str, name: str, fn: Callable[..., Any]) -> Schedule:
    """Wrap ``fn(count)`` or ``fn(count, hyper)``, told apart by their required arguments."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(fn).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind in kinds]
    if len(required) not in (1, 2):
        raise TypeError(f"{owner}: {name} must be a number, fn(count) or fn(count, hyper).")
    return Schedule(fn, len(required) == 2)


def evaluate(setting: Any, count: Array, hyper: Hyper) -> Any:
    """The number that a normalised setting stands for at step ``count``."""
    if isinstance(setting, Schedule | InverseTime | Decay):
        return setting(count, hyper)
    return jnp.asarray(setting)
