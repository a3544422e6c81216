"""Optax transformations whose numbers are leaves, so that changing one does not recompile."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeGuard

import jax
import optax

from bilevel.core.schedules import FunctionSchedule, Schedule, Setting, as_schedule
from bilevel.utils import Counter, FloatTree, Hyper, Params, PyTree, register_node, take_fingerprint


@dataclass(frozen=True)
class Transform:
    """An optax transformation as a value; made by :func:`transform`.

    ``optax.adam(0.1)`` hides its numbers in closures: each new one is a new program. A
    ``Transform`` keeps them as pytree leaves and builds the transformation while tracing.
    """

    factory: Callable[..., optax.GradientTransformation]
    settings: dict[str, Setting]

    def init(self, params: Params) -> PyTree:
        """Return optax's state, which does not depend on numbers that ``hyper`` decides."""
        numbers = {k: 0.0 if _sees_hyper(v) else v for k, v in self.settings.items()}
        return self.factory(**_unwrap(numbers)).init(params)

    def update(
        self, updates: Params, state: PyTree, params: Params = None, **extra: PyTree
    ) -> tuple[Params, PyTree]:
        """Return optax's update; ``extra`` is for transformations that ask for more."""
        tx = optax.with_extra_args_support(self.factory(**_unwrap(self.settings)))
        return tx.update(updates, state, params, **extra)

    def at(self, count: Counter, hyper: Hyper) -> "Transform":
        """Return the transformation at step ``count``, with the numbers that ``hyper`` decides."""
        settings = {k: v(count, hyper) if _sees_hyper(v) else v for k, v in self.settings.items()}
        return Transform(self.factory, settings)


register_node(Transform, data_fields=["settings"], meta_fields=["factory"])


def transform(
    factory: Callable[..., optax.GradientTransformation],
    **settings: Setting | Callable[..., FloatTree],
) -> Transform:
    """Return ``factory(**settings)`` as a pytree: numbers are leaves and never recompile.

    A setting may be a number, an optax schedule ``fn(count)``, or, in a solver, ``fn(count,
    hyper)`` when it is itself a hyperparameter. Accepted wherever an optax transformation is.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp, optax
    >>> bl.transform(optax.adam, learning_rate=0.1).settings
    {'learning_rate': 0.1}
    >>> learned = bl.transform(optax.sgd, learning_rate=lambda count, hyper: jnp.exp(hyper))
    """
    normalised: dict[str, Setting] = {
        k: as_schedule("transform", k, v) if callable(v) else v for k, v in settings.items()
    }
    return Transform(factory, normalised)


@jax.tree_util.register_static
@dataclass(frozen=True)
class StaticTransform:
    """A plain optax transformation as a static pytree node, equal to others that do the same."""

    tx: optax.GradientTransformation = field(compare=False)
    does: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Describe what it does: ``optax.adam(0.1)`` in two calls is one program."""
        object.__setattr__(self, "does", take_fingerprint(self.tx))

    def init(self, params: Params) -> PyTree:
        """Return optax's state."""
        return self.tx.init(params)

    def update(
        self, updates: Params, state: PyTree, params: Params = None, **extra: PyTree
    ) -> tuple[Params, PyTree]:
        """Return optax's update; ``extra`` is for transformations that ask for more."""
        return optax.with_extra_args_support(self.tx).update(updates, state, params, **extra)


def as_pytree(owner: str, tx: PyTree) -> PyTree:
    """Return a transformation as a pytree that may cross a ``jit`` boundary."""
    if isinstance(tx, Transform | StaticTransform):
        return tx
    if isinstance(tx, optax.GradientTransformation):
        return StaticTransform(tx)
    if jax.tree_util.all_leaves([tx]):
        raise TypeError(
            f"{owner}: expected an optax transformation such as optax.adam(0.1), "
            f"or bl.transform(optax.adam, learning_rate=0.1), got {tx!r}."
        )
    return tx


def _sees_hyper(setting: object) -> TypeGuard[Schedule]:
    return isinstance(setting, Schedule) and setting.sees_hyper


def _unwrap(settings: dict[str, Any]) -> dict[str, object]:
    """Optax wants its own schedules, ``fn(count)``, back as plain functions."""

    def plain(setting: object) -> object:
        if isinstance(setting, FunctionSchedule):
            return setting.fn
        return partial(setting, hyper=None) if isinstance(setting, Schedule) else setting

    return {k: plain(v) for k, v in settings.items()}
