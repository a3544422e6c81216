"""Spaces of several entries together: weights that sum to one, and entries that are equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.spaces.base import Free, Space, Value, first_outside
from bilevel.utils import Number


@dataclass(frozen=True)
class Simplex:
    """Positive entries that sum to one along the last axis: ``softmax(x)``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.spaces import Simplex
    >>> Simplex().natural(jnp.zeros(4))
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """

    def natural(self, free: Array) -> Array:
        """Return natural units, as above."""
        return jax.nn.softmax(free, axis=-1)

    def free(self, natural: Array) -> Array:
        """Return ``log value``, of mean 0."""
        logs = jnp.log(natural)
        return logs - jnp.mean(logs, axis=-1, keepdims=True)

    def admit(self, free: Array) -> Array:
        """Return coordinates not so far below the largest that the softmax would be 0."""
        least = np.log(4 * float(jnp.finfo(free.dtype).tiny) * free.shape[-1])
        top = jnp.max(free, axis=-1, keepdims=True)
        low = top + least
        # Beside a large number the sum is rounded, and must not be rounded to below `least`.
        at, end = jax.lax.stop_gradient((low, top))
        low = low + jnp.where(at - end < least, jnp.nextafter(at, end) - at, 0)
        return jnp.maximum(free, low)

    def fault(self, natural: Value) -> str | None:
        """Return what is wrong: not positive, or of another sum; only rounding is forgiven."""
        if not np.ndim(natural):
            return f"is a scalar, and {self} needs an axis to sum over."
        if text := first_outside(natural, lambda value: value > 0):
            return f"{text}, not inside {self}: entries must be positive. Start inside."

        def sums(value: np.ndarray) -> np.ndarray:
            rounding = 10 * value.shape[-1] * float(jnp.finfo(value.dtype).eps)
            total = value.sum(-1, keepdims=True, dtype=float)
            return np.broadcast_to(np.abs(total - 1) <= rounding, value.shape)

        if first_outside(natural, sums):
            return (
                f"has entries that do not sum to 1 along the last axis, which {self} asks for. "
                "Divide by their sum."
            )
        return None

    def covector(self, free: Array, grad: Array) -> Array:
        """Divide by the weights: the pull-back is ``weights * (g - weights . g)``."""
        return grad / self.natural(free)

    def errors(self, free: Array, error: Array) -> Array:
        """Return the errors by the Jacobian, ``w_i (1 if i = j else 0) - w_i w_j``."""
        w = self.natural(free)
        every = jnp.sum((w * error) ** 2, axis=-1, keepdims=True)
        return w * jnp.sqrt((1 - 2 * w) * error**2 + every)

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return weights uniform on the simplex, by exponential variables."""
        least = jnp.finfo(free.dtype).eps
        return self.admit(jnp.log(-jnp.log(jnp.clip(uniform, least, 1 - least))).astype(free.dtype))


Label: TypeAlias = int | str | np.generic | Array


@dataclass(frozen=True)
class Tied:
    """Entries along the last axis that are equal within groups: one coordinate per group.

    The outer rule sees one number per group and moves it by the sum of the entries' gradients.
    Losses and estimators see all entries: forward mode carries a tangent for each. Where that
    matters, let ``hyper`` hold one number per group and index it in the loss.

    Parameters
    ----------
    groups : the group of each entry, any labels: ``(0, 0, 1)`` or ``("a", "a", "b")``.
    space : where the groups' numbers live.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.spaces import Log, Tied
    >>> Tied("aab", Log()).natural(jnp.array([0.0, 1.0])).round(2)
    Array([1.  , 1.  , 2.72], dtype=float32)
    """

    groups: Sequence[Label]
    space: Space = Free()

    def __post_init__(self) -> None:
        """Number the groups in order of appearance."""
        labels = [g.item() if isinstance(g, np.generic | jax.Array) else g for g in self.groups]
        if not labels or not hasattr(self.space, "natural"):
            raise ValueError(
                "Tied needs the group of each entry and a space, such as Tied((0, 0, 1), Log()), "
                f"got Tied({self.groups!r}, {self.space!r})."
            )
        order = list(dict.fromkeys(labels))
        object.__setattr__(self, "groups", tuple(order.index(label) for label in labels))

    @property
    def _first(self) -> np.ndarray:
        """Return the first entry of each group."""
        return np.unique(np.asarray(self.groups), return_index=True)[1]

    def natural(self, free: Array) -> Array:
        """Return each entry as its group's number."""
        return self.space.natural(free)[..., np.asarray(self.groups)]

    def free(self, natural: Array) -> Array:
        """Return the groups' coordinates."""
        return self.space.free(natural[..., self._first])

    def admit(self, free: Array) -> Array:
        """Return what the groups' space does."""
        return self.space.admit(free)

    def fault(self, natural: Value) -> str | None:
        """Return what is wrong: another length, unequal in a group, or outside the space."""
        if np.shape(natural)[-1:] != (len(self.groups),):
            return (
                f"has shape {list(np.shape(natural))}, and Tied groups {len(self.groups)} entries."
            )
        first = self._first[np.asarray(self.groups)]
        if text := first_outside(natural, lambda value: value == value[..., first]):
            return f"{text}, unlike the first entry of its group: tied entries start out equal."
        return self.space.fault(natural)

    def covector(self, free: Array, grad: Array) -> Array:
        """Return the gradient shared out evenly within each group."""
        sizes = np.bincount(np.asarray(self.groups))
        return (self.space.covector(free, grad) / sizes)[..., np.asarray(self.groups)]

    def errors(self, free: Array, error: Array) -> Array:
        """Return the errors of the sums within the groups, for a space that acts entry by entry."""
        squares = jnp.zeros(free.shape, free.dtype).at[..., np.asarray(self.groups)].add(error**2)
        return jax.vjp(self.space.natural, free)[1](jnp.sqrt(squares))[0]

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return what the groups' space does."""
        return self.space.sample(uniform, free, spread)
