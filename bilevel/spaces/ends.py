"""The ends of an interval, which of them are open, and the numbers of a dtype between them."""

from dataclasses import dataclass
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.spaces.base import first_outside

Nested: TypeAlias = float | tuple["Nested", ...]  # numbers as `tolist` nests them, hashable


@dataclass(frozen=True)
class Ends:
    """``low`` and ``high``, numbers or nested tuples; whether they are finite and open."""

    low: Nested
    high: Nested
    open_low: bool
    open_high: bool

    def cast(self, like: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return both as arrays of the dtype of ``like``."""
        return np.asarray(self.low, like.dtype), np.asarray(self.high, like.dtype)

    def range(self, like: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the admissible numbers next to the ends; far ones in place of infinite ends."""
        low, high = self.cast(like)
        info = jnp.finfo(like.dtype)
        least, far = (np.asarray(x, like.dtype) for x in (4 * info.tiny, info.max / 4))
        first, last = low, high
        if self.open_low:  # below the smallest normal number XLA may take anything for 0
            first = np.nextafter(low, high)
            first = np.where(np.abs(first) < least, least, first)
        if self.open_high:
            last = np.nextafter(high, low)
            last = np.where(np.abs(last) < least, -least, last)
        return np.maximum(first, -far), np.minimum(last, far)

    def fault(self, owner: object, natural: ArrayLike) -> str | None:
        """Return what is wrong with a value, as the end of a sentence."""
        shape = np.broadcast_shapes(np.shape(self.low), np.shape(self.high))
        try:
            fits = np.broadcast_shapes(shape, np.shape(natural)) == np.shape(natural)
        except ValueError:
            fits = False
        if not fits:
            return f"has shape {list(np.shape(natural))}, and the ends of {owner} {list(shape)}."

        def inside(value: np.ndarray) -> np.ndarray:
            low, high = np.asarray(self.low, value.dtype), np.asarray(self.high, value.dtype)
            above = value > low if self.open_low else value >= low
            return above & (value < high if self.open_high else value <= high)

        if (text := first_outside(natural, inside)) is None:
            return None
        signs = [
            "<" if is_open or not np.isfinite(end).all() else "<="
            for is_open, end in ((self.open_low, self.low), (self.open_high, self.high))
        ]
        return (
            f"{text}, not inside {owner}: it must be {self.low} {signs[0]} value {signs[1]} "
            f"{self.high}. Start inside, or move the end."
        )


def make_ends(
    owner: str, low: ArrayLike | Nested, high: ArrayLike | Nested, closed: bool | str
) -> Ends:
    """Return both ends, checked and hashable.

    Raises
    ------
    ValueError : no numbers, ``low`` not below ``high``, an end finite for some entries only.
    """
    for name, end in (("low", np.asarray(low, float)), ("high", np.asarray(high, float))):
        if np.isnan(end).any() or 0 < np.mean(np.isfinite(end)) < 1:
            raise ValueError(
                f"{owner}: {name} must be a number, or an array of numbers that are all finite or "
                f"all infinite, got {end.tolist()}. Put the others into another leaf."
            )
    if closed not in (False, True, "low", "high"):
        raise ValueError(f"{owner}: closed must be False, True, 'low' or 'high', got {closed!r}.")
    if not (np.asarray(low) < np.asarray(high)).all():
        raise ValueError(f"{owner}: low must be below high, got {low} and {high}.")
    open_low = bool(np.isfinite(low).all()) and closed not in (True, "low")
    open_high = bool(np.isfinite(high).all()) and closed not in (True, "high")
    return Ends(_hashable(low), _hashable(high), open_low, open_high)


def _hashable(values: ArrayLike | Nested) -> Nested:
    listed = np.asarray(values, float).tolist()

    def tuples(x: float | list) -> Nested:
        return tuple(map(tuples, x)) if isinstance(x, list) else x

    return tuples(listed)
