"""Step sizes that change: with the step count, or with the hyperparameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from bilevel.utils import (
    Count,
    FloatTree,
    Hyper,
    Number,
    PyTree,
    register_node,
    require_positive,
)


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


@jax.tree_util.register_static
@dataclass(frozen=True)
class Continued:
    """``fn(count, hyper)`` whose count goes on from call to call.

    Otherwise the count of a setting that is a hyperparameter itself begins at 0 in every call: one
    number for each step of a call is then the same schedule in all outer steps.

    Examples
    --------
    >>> import bilevel as bl
    >>> solver = bl.SGD(bl.Continued(lambda count, hyper: hyper / (1 + count)), batch_size=8)
    """

    fn: Callable[[Count, Hyper], FloatTree]
    sees_hyper: ClassVar[bool] = True
    continues: ClassVar[bool] = True

    def __call__(self, count: Count, hyper: Hyper = None) -> FloatTree:
        """Return the number at step ``count``, of all calls together."""
        return self.fn(count, hyper)


@dataclass(frozen=True)
class SettingTree:
    """A tree of settings that is a prefix of the params: one number for each part of them."""

    tree: PyTree

    @property
    def sees_hyper(self) -> bool:
        """Whether one of them depends on ``hyper``."""
        return any(getattr(setting, "sees_hyper", False) for setting in self._leaves())

    @property
    def continues(self) -> bool:
        """Whether all that depend on ``hyper`` go on from call to call."""
        seeing = [setting for setting in self._leaves() if getattr(setting, "sees_hyper", False)]
        return all(getattr(setting, "continues", False) for setting in seeing)

    def __call__(self, count: Count, hyper: Hyper = None) -> FloatTree:
        """Return the tree of numbers at step ``count``."""
        return jax.tree.map(
            lambda setting: evaluate(setting, count, hyper), self.tree, is_leaf=_is_schedule
        )

    def _leaves(self) -> list[Setting]:
        return jax.tree.leaves(self.tree, is_leaf=_is_schedule)


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


@dataclass(frozen=True)
class Relative:
    r"""A step size that is a fraction of the solver's stability limit, measured in every call.

    The limit is that of the current hyperparameters, so that a penalty cannot outgrow it: six
    products with the Hessian in every call, by Lanczos from the vector of the call before. For
    minibatches it is a lower bound of the mean-square
    limit, measured on 16 batches of rows (at least 256), also with the curvature of single
    examples. A call keeps one limit; the derivative of the limit is stopped: a hypergradient is
    that of steps of this size. For ``GradientDescent``, ``SGD``, ``ProximalGradient``, ``FISTA``,
    ``SVRG`` and ``SAGA``. ``evidence.counts`` do not include these products.

    Parameters
    ----------
    fraction : a positive number, or ``fn(count)``; 1 is the limit itself.

    Raises
    ------
    ValueError : a fraction that is not positive, or that depends on ``hyper``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(lambda w, h, x: h * jnp.mean((x - w) ** 2), lambda w, h, x: w)
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> solver, key = bl.GradientDescent(bl.Relative(0.5)), jax.random.key(0)
    >>> bl.solve(problem, solver, 1e4, jnp.array(0.0), data, key, steps=3).round(4)
    Array(2., dtype=float32)
    """

    fraction: Setting = 0.5

    def __post_init__(self) -> None:
        """Validate the fraction."""
        fraction = as_setting("Relative", "fraction", self.fraction)
        if getattr(fraction, "sees_hyper", False):
            raise ValueError(
                "Relative: fraction must not depend on hyper, since the derivative of the measured "
                "limit is stopped. A step size that is a hyperparameter is step_size=fn(count, "
                "hyper)."
            )
        object.__setattr__(self, "fraction", fraction)


register_node(SettingTree)
register_node(InverseTime)
register_node(Decay)
register_node(Relative)


def as_setting(owner: str, name: str, value: Setting) -> Setting:
    """Return a checked setting: numbers stay leaves, functions become static schedules."""
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return as_schedule(owner, name, value)
    if isinstance(value, Relative):
        raise TypeError(
            f"{owner}: {name} cannot be {value!r}: there is no stability limit that it would be a "
            "fraction of. Relative is for the step_size of solvers; give a number or fn(count)."
        )
    require_positive(owner, name, value)
    return value


def as_setting_tree(owner: str, name: str, value: PyTree) -> Setting:
    """Return a checked setting that may be a tree of settings, a prefix of the params."""
    if isinstance(value, SettingTree) or _is_setting(value):
        return as_setting(owner, name, value)
    leaves, tree = jax.tree.flatten(value, is_leaf=_is_setting)
    if not leaves:
        raise ValueError(f"{owner}: {name} must be a number, or a tree of numbers, got {value!r}.")
    return SettingTree(tree.unflatten([as_setting(owner, name, leaf) for leaf in leaves]))


def _is_schedule(value: object) -> bool:
    return isinstance(value, Schedule)


def _is_setting(value: object) -> bool:
    return callable(value) or isinstance(value, Relative) or jax.tree_util.all_leaves([value])


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


def evaluate(setting: Setting, count: Count, hyper: Hyper) -> FloatTree:
    """Return the number that a checked setting stands for at step ``count``."""
    if isinstance(setting, Schedule):
        return setting(count, hyper)
    return jnp.asarray(setting)
