"""Spaces that act entry by entry: intervals with open or closed ends, plain or on a log scale."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.spaces.base import Space, Value, clip_through, draw_around
from bilevel.spaces.ends import Ends, Nested, make_ends
from bilevel.utils import Number, require_positive


@dataclass(frozen=True)
class Box:
    r"""``low < value < high``; a closed end belongs to the space and can be reached.

    An open end is infinitely far away in coordinates ``x``. A closed one is where ``x`` is held
    back (projected), so that a run may rest on it and leave it again:

        both ends open      low + (high - low) / (1 + exp(-x))
        one end open        low + log(1 + exp(x)),  high - log(1 + exp(-x))
        none                x

    Parameters
    ----------
    low, high : numbers, or arrays that broadcast against the leaf; infinite for no end.
    closed : ``True`` for all finite ends, ``"low"`` or ``"high"`` for one of them.

    Raises
    ------
    ValueError : ``low`` not below ``high``; an end that is finite for some entries only.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.spaces import Box
    >>> Box(0.0, 1.0).free(jnp.array(0.5))
    Array(0., dtype=float32)
    >>> momentum, lag = Box(0.0, 1.0, closed="low"), Box(low=1.0)
    """

    low: ArrayLike | Nested = -math.inf
    high: ArrayLike | Nested = math.inf
    closed: bool | str = False

    def __post_init__(self) -> None:
        """Validate the arguments, and make the ends hashable."""
        _keep(self, make_ends("Box", self.low, self.high, self.closed))

    @property
    def _ends(self) -> Ends:
        return make_ends("Box", self.low, self.high, self.closed)

    def natural(self, free: Array) -> Array:
        """Return natural units, as above."""
        own: Ends = self._ends
        x = free
        low, high = own.cast(free)
        if own.open_low and own.open_high:
            share = (high - low) * jax.nn.sigmoid(-jnp.abs(x))
            x = jnp.where(x < 0, low + share, high - share)
        elif own.open_low:
            x = low + jax.nn.softplus(x)
        elif own.open_high:
            x = high - jax.nn.softplus(-x)
        return clip_through(x, *own.range(free))

    def free(self, natural: Array) -> Array:
        """Return the coordinates, the inverse."""
        own = self._ends
        low, high = own.cast(natural)
        if own.open_low and own.open_high:
            return jnp.log(natural - low) - jnp.log(high - natural)
        if own.open_low:
            return _unsoftplus(natural - low)
        return -_unsoftplus(high - natural) if own.open_high else natural

    def admit(self, free: Array) -> Array:
        """Return coordinates held between the ends."""
        return _admit(self, self._ends, free)

    def fault(self, natural: Value) -> str | None:
        """Return what is wrong: outside, or on an open end."""
        return self._ends.fault(self, natural)

    def covector(self, free: Array, grad: Array) -> Array:
        """Return the gradient divided by the slope."""
        return grad / _slope(self, free)

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return numbers uniform between two finite ends, else within ``spread`` in coordinates."""
        low, high = self._ends.cast(free)
        if not np.isfinite(high - low).all():
            return self.admit(draw_around(uniform, free, spread))
        inside = jnp.clip(low + (high - low) * uniform, *self._ends.range(free))
        return self.admit(self.free(inside.astype(free.dtype)))


@dataclass(frozen=True)
class Log:
    """``low < value < high`` on a log scale: the logarithm lives in ``Box(log low, log high)``.

    Without ends ``value = exp(x)``: for penalties, rates, length scales.

    Parameters
    ----------
    low, high, closed : as for :class:`Box`; ``low`` is at least 0, and 0 is never closed.

    Raises
    ------
    ValueError : as for :class:`Box`; a negative ``low``, a closed end at 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.spaces import Log
    >>> Log().natural(jnp.array(0.0))
    Array(1., dtype=float32)
    >>> round(float(Log(1e-4, 1e2).natural(jnp.array(0.0))), 4)  # the middle
    0.1
    """

    low: ArrayLike | Nested = 0.0
    high: ArrayLike | Nested = math.inf
    closed: bool | str = False

    def __post_init__(self) -> None:
        """Validate the arguments, and make the ends hashable."""
        low = np.asarray(self.low)
        if (low < 0).any() or (self.closed in (True, "low") and (low == 0).any()):
            raise ValueError(
                f"Log: low must be at least 0, and above 0 where it is closed, got {self.low}: 0 "
                "is infinitely far away on a log scale. Use Box(low=0.0, closed=True)."
            )
        _keep(self, make_ends("Log", self.low, self.high, self.closed))
        _ = self._exponent

    @property
    def _ends(self) -> Ends:
        own = make_ends("Log", self.low, self.high, self.closed)
        return replace(own, open_low=own.open_low or not np.any(self.low))

    @property
    def _exponent(self) -> Box:
        with np.errstate(divide="ignore"):
            return Box(np.log(self.low), np.log(self.high), self.closed)

    def natural(self, free: Array) -> Array:
        """Return natural units, as above."""
        return clip_through(jnp.exp(self._exponent.natural(free)), *self._ends.range(free))

    def free(self, natural: Array) -> Array:
        """Return the coordinates, the inverse."""
        return self._exponent.free(jnp.log(natural))

    def admit(self, free: Array) -> Array:
        """Return coordinates held between the ends."""
        return self._exponent.admit(_admit(self, self._ends, free))

    def fault(self, natural: Value) -> str | None:
        """Return what is wrong: outside, or on an open end."""
        return self._ends.fault(self, natural)

    def covector(self, free: Array, grad: Array) -> Array:
        """Return the gradient divided by the slope."""
        return grad / _slope(self, free)

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return log-uniform numbers between two finite ends, or within ``spread``."""
        return self.admit(self._exponent.sample(uniform, free, spread))


@dataclass(frozen=True)
class Softplus:
    """``value > low``, as ``low + scale log(1 + exp(x / scale))``: linear from ``scale`` on.

    Raises
    ------
    ValueError : a scale that is not positive, a ``low`` that is not finite.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.spaces import Softplus
    >>> Softplus(scale=0.1).natural(jnp.array(5.0))
    Array(5., dtype=float32)
    """

    low: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("Softplus", "scale", self.scale)
        if not math.isfinite(self.low):
            raise ValueError(f"Softplus: low must be finite, got {self.low}.")

    @property
    def _ends(self) -> Ends:
        return Ends(self.low, math.inf, open_low=True, open_high=False)

    def natural(self, free: Array) -> Array:
        """Return natural units, as above."""
        value = self.low + self.scale * jax.nn.softplus(free / self.scale)
        return clip_through(value, *self._ends.range(free))

    def free(self, natural: Array) -> Array:
        """Return the coordinates, the inverse."""
        return self.scale * _unsoftplus((natural - self.low) / self.scale)

    def admit(self, free: Array) -> Array:
        """Return coordinates held above ``low``, and below where ``x / scale`` would overflow."""
        far = min(self.scale, 1.0) * float(jnp.finfo(free.dtype).max) / 8
        return jnp.minimum(_admit(self, self._ends, free), far)

    def fault(self, natural: Value) -> str | None:
        """Return what is wrong: at ``low`` or below."""
        return self._ends.fault(self, natural)

    def covector(self, free: Array, grad: Array) -> Array:
        """Return the gradient divided by the slope."""
        return grad / _slope(self, free)

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return numbers within ``spread`` in coordinates."""
        return self.admit(draw_around(uniform, free, spread))


def _keep(space: Space, own: Ends) -> None:
    object.__setattr__(space, "low", own.low)
    object.__setattr__(space, "high", own.high)


def _admit(space: Space, own: Ends, free: Array) -> Array:
    first, last = own.range(free)
    return jnp.clip(free, space.free(jnp.asarray(first)), space.free(jnp.asarray(last)))


def _slope(space: Space, free: Array) -> Array:
    return jax.jvp(space.natural, (free,), (jnp.ones_like(free),))[1]


def _unsoftplus(y: Array | np.ndarray) -> Array:
    """Return the ``x`` with ``log(1 + exp(x)) = y``."""
    return jnp.log(-jnp.expm1(-y)) + y
