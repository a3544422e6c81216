"""Step sizes that change: with the step count, or with the hyperparameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from bilevel.utils import Count, Counter, FloatTree, Hyper, Number, register_node, require_positive


@runtime_checkable
class Schedule(Protocol):
    """A setting that changes with the step count, or with the hyperparameters.

    A class of your own that is registered as a pytree keeps its numbers as leaves, so that
    changing one compiles nothing. ``sees_hyper`` says whether the value depends on ``hyper``.
    """

    @property
    def sees_hyper(self) -> bool:
        """Whether the value depends on ``hyper``: then it is a hyperparameter itself."""
        ...

    def __call__(self, count: Count, hyper: Hyper) -> FloatTree:
        """Return the number at step ``count`` (``()``, int32), or a tree of numbers."""
        ...


Setting: TypeAlias = Number | Schedule | Callable[..., FloatTree]


@jax.tree_util.register_static
@dataclass(frozen=True)
class FunctionSchedule:
    """A user's function in place of a number: ``fn(count)``, or ``fn(count, hyper)``."""

    fn: Callable[..., FloatTree]
    sees_hyper: bool

    def __call__(self, count: Count, hyper: Hyper = None) -> FloatTree:
        """Return the number at step ``count`` (``()``, int32)."""
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

    mu: Number
    L: Number
    sees_hyper: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("InverseTime", "mu", self.mu)
        require_positive("InverseTime", "L", self.L)

    def __call__(self, count: Count, hyper: Hyper = None) -> Number:
        """Return the step size at step ``count``."""
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

    start: Number
    power: Number
    sees_hyper: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("Decay", "start", self.start)

    def __call__(self, count: Count, hyper: Hyper = None) -> Number:
        """Return the value at step ``count``."""
        del hyper
        return self.start / (count + 1) ** self.power


register_node(InverseTime)
register_node(Decay)


def as_setting(owner: str, name: str, value: Setting) -> Setting:
    """Return a checked setting: numbers stay leaves, functions become static schedules."""
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return as_schedule(owner, name, value)
    require_positive(owner, name, value)
    return value


def as_schedule(owner: str, name: str, fn: Callable[..., FloatTree]) -> Schedule:
    """Return ``fn(count)`` or ``fn(count, hyper)``, by their arguments, as a schedule."""
    if isinstance(fn, Schedule):
        return fn
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(fn).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind in kinds]
    if len(required) not in (1, 2):
        raise TypeError(f"{owner}: {name} must be a number, fn(count) or fn(count, hyper).")
    return FunctionSchedule(fn, len(required) == 2)


def evaluate(setting: Setting, count: Counter, hyper: Hyper) -> FloatTree:
    """Return the number that a checked setting stands for at step ``count``."""
    if isinstance(setting, Schedule):
        return setting(count, hyper)
    return jnp.asarray(setting)
