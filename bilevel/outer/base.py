"""What an outer rule may say about itself beside optax's ``init`` and ``update``.

:func:`bilevel.tune` evaluates value and hypergradient once per step and calls
``update(grad, state, hyper, value=..., standard_error=...)``. A rule that searches is therefore a
machine of states: it remembers the point it came from, and a point that it does not like it leaves
by the next update. It is a frozen dataclass and a pytree: counts static, floats leaves.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Estimate
from bilevel.utils import PyTree

_E = TypeVar("_E")
Admit = Callable[[PyTree], PyTree]  # what a space admits


class OuterRule(Protocol):
    """How the hyperparameters move: the two functions of an optax transformation.

    What else a rule knows about itself it says through the optional protocols of this module.
    """

    @property
    def init(self) -> Callable[[PyTree], PyTree]:
        """``(hyper) -> state``."""
        ...

    @property
    def update(self) -> Callable[..., tuple[PyTree, PyTree]]:
        """``(grad, state, hyper, value=, ...) -> (updates, state)``."""
        ...


@runtime_checkable
class TracksBest(Protocol):
    """A rule that remembers a best point, which is what a run ends with."""

    def best(self, state: PyTree, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """Return the better of ``hyper``, of this value, and the point remembered; its value."""
        ...


@runtime_checkable
class Backtracks(Protocol):
    """A rule that comes back from hyperparameters where the inner solver diverges."""

    def backtrack(self, before: PyTree, after: PyTree, hyper: PyTree) -> tuple[PyTree, Array]:
        """Return the state to propose again with, and whether there is hope, ``()``, boolean.

        ``before`` and ``after`` are the states around the update that proposed ``hyper``. The same
        estimate is handed to the next update, so that ``before`` with a shorter reach will do.
        """
        ...


@runtime_checkable
class SetsTolerance(Protocol):
    """A rule that needs little accuracy at first and sets the estimator's tolerances."""

    def set_tolerance(self, estimator: _E, state: PyTree) -> _E:
        """Return the estimator of the next evaluation: same structure, never more accurate."""
        ...


def move_hyper(
    tx: OuterRule, estimate: Estimate, state: PyTree, hyper: PyTree, admit: Admit | None = None
) -> tuple[PyTree, PyTree]:
    """Return ``(hyper, state)`` after the update that an estimate asks for.

    Every optax transformation is offered ``value``; one that names ``standard_error`` gets it too,
    and one that names ``admit`` the map onto what a space admits, ``None`` for no space.

    Raises
    ------
    TypeError : a transformation that must evaluate by itself, such as ``optax.lbfgs()``.
    """
    offered = {"standard_error": estimate.evidence.standard_error, "admit": admit}
    names = inspect.signature(tx.update).parameters
    extra: dict[str, Any] = {name: offered[name] for name in offered if name in names}
    try:
        updates, state = tx.update(estimate.grad, state, hyper, value=estimate.value, **extra)
    except TypeError as error:
        if "value_fn" not in str(error):
            raise
        raise TypeError(
            "tune evaluates the outer loss once per step, so a transformation that calls value_fn "
            "by itself cannot be used. Take bl.outer.LBFGS() or bl.outer.LineSearch(), which need "
            "one evaluation per step."
        ) from error
    return optax.apply_updates(hyper, updates), state


def flatten(
    owner: str, grad: PyTree, hyper: PyTree, value: float | Array | None
) -> tuple[Array, Array, Array, Callable[[Array], PyTree]]:
    """Return ``hyper``, ``grad`` and ``value`` as flat arrays of one dtype, and the way back.

    Raises
    ------
    ValueError : the value or the hyperparameters are missing.
    """
    if value is None or hyper is None:
        raise ValueError(
            f"{owner} decides by the outer value: call update(grad, state, hyper, value=value). "
            "Inside optax.chain only transformations with extra arguments receive it; give the "
            "rule to tune by itself."
        )
    at, back = ravel_pytree(hyper)
    slope = ravel_pytree(grad)[0].astype(at.dtype)
    return at, slope, jnp.asarray(value).astype(at.dtype), back


def flat_admit(
    admit: Admit | None, back: Callable[[Array], PyTree]
) -> Callable[[Array], Array] | None:
    """Return what a space admits, as a map of flat arrays; ``None`` for no space."""
    return None if admit is None else lambda flat: ravel_pytree(admit(back(flat)))[0]
