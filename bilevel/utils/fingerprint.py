"""What a function does, as a value: two closures of the same code over equal things are equal.

``optax.adam(0.1)`` makes new functions at every call. Compared by identity each of them would be a
new program; compared by code and by what they close over they are the same one.
"""

import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.utils.trees import is_traced

# What these modules look up by a global name does not change while a program runs.
_STABLE = frozenset({"optax", "jax", "numpy", "functools", "bilevel", "flax", "chex"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.dtype, np.generic)


@dataclass(frozen=True, eq=False)
class _Identity:
    """A thing that is only equal to itself; holding it keeps its address from being reused."""

    thing: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def take_fingerprint(thing: object) -> Hashable:
    """Return a value that is equal for things that do the same, as far as that can be told.

    Functions are compared by their code, their defaults, what they close over and, outside the
    libraries, the globals that they read; containers and arrays by content, with their types; all
    else by identity, so that a doubt makes two things differ.

    Examples
    --------
    >>> import optax
    >>> take_fingerprint(optax.adam(0.1)) == take_fingerprint(optax.adam(0.1))
    True
    >>> take_fingerprint(optax.adam(0.1)) == take_fingerprint(optax.adam(0.2))
    False
    """
    return _describe(thing, ())


def _describe(thing: object, inside: tuple[int, ...]) -> Hashable:
    if isinstance(thing, _PLAIN):
        # repr tells -0.0 from 0.0, and a NaN is itself.
        exact = isinstance(thing, float | complex | np.generic)
        return type(thing), repr(thing) if exact else thing
    if id(thing) in inside:
        return "itself", len(inside) - inside.index(id(thing))
    within = partial(_describe, inside=(*inside, id(thing)))
    if isinstance(thing, np.ndarray) and thing.dtype != object:
        return np.ndarray, thing.dtype, thing.shape, thing.tobytes()
    if isinstance(thing, jax.Array) and not is_traced(thing):
        return _describe_array(thing)
    if isinstance(thing, tuple | list):
        return type(thing), *map(within, thing)
    if isinstance(thing, dict):
        return dict, *((within(key), within(value)) for key, value in thing.items())
    if isinstance(thing, partial):
        return partial, within(thing.func), within(thing.args), within(thing.keywords)
    if isinstance(thing, types.MethodType):
        return types.MethodType, within(thing.__func__), within(thing.__self__)
    if isinstance(thing, types.FunctionType):
        return _describe_function(thing, within)
    return _Identity(thing)


def _describe_array(array: jax.Array) -> Hashable:
    if jnp.issubdtype(array.dtype, jax.dtypes.extended) or not array.is_fully_addressable:
        return _Identity(array)
    return jax.Array, array.dtype, array.weak_type, array.shape, np.asarray(array).tobytes()


def _describe_function(fn: types.FunctionType, within: Callable[[object], Hashable]) -> Hashable:
    """Return code and surroundings; an attribute set on it may be read by anyone: identity."""
    if fn.__dict__.keys() - {"__wrapped__"}:
        return _Identity(fn)
    cells: list[object] = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            return _Identity(fn)
    surroundings = (cells, fn.__defaults__, fn.__kwdefaults__, _globals_read(fn))
    return types.FunctionType, fn.__code__, id(fn.__globals__), within(surroundings)


def _globals_read(fn: types.FunctionType) -> dict[str, object]:
    if (fn.__module__ or "").partition(".")[0] in _STABLE:
        return {}
    names: set[str] = set()
    codes = [fn.__code__]
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return {name: fn.__globals__[name] for name in sorted(names) if name in fn.__globals__}
