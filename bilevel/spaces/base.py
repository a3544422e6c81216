"""The contract of a space, and trees of spaces."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils import Number, PyTree, is_traced, leaf_address

Value: TypeAlias = ArrayLike  # of the user, not checked yet


@runtime_checkable
class Space(Protocol):
    """Where one array of hyperparameters lives; static and hashable.

    ``natural`` maps free coordinates, which any outer rule may move, to natural units; ``free``
    is its inverse. ``natural(admit(x))`` is inside for every finite ``x``, rounding included.
    """

    def natural(self, free: Array) -> Array:
        """Return natural units; differentiable, of positive slope where it acts entry by entry."""
        ...

    def free(self, natural: Array) -> Array:
        """Return the coordinates of a point inside."""
        ...

    def admit(self, free: Array) -> Array:
        """Return the nearest coordinates that can be told from an open end, or are inside."""
        ...

    def fault(self, natural: Value) -> str | None:
        """Return what is wrong with a value, to end a sentence; of a tracer only its shape."""
        ...

    def covector(self, free: Array, grad: Array) -> Array:
        """Return a gradient in natural units whose pull-back is ``grad``, in coordinates."""
        ...

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return coordinates for uniform numbers, over a bounded space or ``spread`` around."""
        ...


@runtime_checkable
class Mixes(Protocol):
    """A space whose coordinates move several entries, so that their errors add up."""

    def errors(self, free: Array, error: Array) -> Array:
        """Return standard errors of the pull-back, those of the entries being independent."""
        ...


@dataclass(frozen=True)
class Free:
    """All real numbers: coordinates are natural units. ``None`` in a tree means the same.

    Examples
    --------
    >>> from bilevel.spaces import Free
    >>> Free().natural(3.0)
    3.0
    """

    def natural(self, free: Array) -> Array:
        """Return it as it is."""
        return free

    def free(self, natural: Array) -> Array:
        """Return it as it is."""
        return natural

    def admit(self, free: Array) -> Array:
        """Return it as it is."""
        return free

    def fault(self, natural: Value) -> None:
        """Return ``None``: every value is inside."""

    def covector(self, free: Array, grad: Array) -> Array:
        """Return it as it is."""
        return grad

    def sample(self, uniform: Array, free: Array, spread: Number) -> Array:
        """Return numbers within ``spread`` of ``free``."""
        return draw_around(uniform, free, spread)


@dataclass(frozen=True)
class Spaces:
    """A space for every leaf of ``hyper``, or for all leaves below a node of it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.spaces import Log, Spaces
    >>> spaces = Spaces.of({"penalty": Log(), "shift": None})
    >>> spaces.free({"penalty": jnp.ones(2), "shift": jnp.array(3.0)})["penalty"]
    Array([0., 0.], dtype=float32)
    """

    leaves: tuple[Space, ...]
    structure: PyTree

    @classmethod
    def of(cls, tree: PyTree) -> "Spaces":
        """Return them from a tree; ``None`` in it stands for :class:`bilevel.spaces.Free`."""
        if isinstance(tree, Spaces):
            return tree
        leaves, structure = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
        leaves = [Free() if leaf is None else leaf for leaf in leaves]
        for leaf in leaves:
            if isinstance(leaf, type) or not hasattr(leaf, "natural"):
                raise TypeError(
                    f"Problem.space must hold spaces such as bl.spaces.Log(), got {leaf!r}."
                )
        return cls(tuple(leaves), structure)

    def __repr__(self) -> str:
        """Return the tree as it was given."""
        return repr(jax.tree.unflatten(self.structure, self.leaves))

    def _map(self, fn: Callable[..., Any], *trees: PyTree) -> PyTree:
        """Return ``fn(space, *leaves)`` for every leaf."""
        tree = jax.tree.unflatten(self.structure, self.leaves)
        return jax.tree.map(lambda s, *parts: jax.tree.map(partial(fn, s), *parts), tree, *trees)

    def natural(self, free: PyTree) -> PyTree:
        """Return natural units, like ``hyper``."""
        return self._map(lambda space, x: space.natural(x), free)

    def free(self, hyper: PyTree) -> PyTree:
        """Return the coordinates of ``hyper``; of tied entries there is only one."""
        return self._map(lambda space, y: space.free(y), hyper)

    def admit(self, free: PyTree) -> PyTree:
        """Return coordinates whose natural units are inside."""
        return self._map(lambda space, x: space.admit(x), free)

    def pull(self, free: PyTree, grad: PyTree) -> PyTree:
        """Apply the chain rule: from a gradient in natural units to one in coordinates."""
        return jax.vjp(self.natural, free)[1](grad)[0]

    def errors(self, free: PyTree, error: PyTree) -> PyTree:
        """Return standard errors of the pull-back of a gradient with independent errors."""

        def one(space: Space, x: Array, e: Array) -> Array:
            return (
                space.errors(x, e)
                if isinstance(space, Mixes)
                else jax.vjp(space.natural, x)[1](e)[0]
            )

        return self._map(one, free, error)

    def covector(self, free: PyTree, grad: PyTree) -> PyTree:
        """Return a gradient in natural units whose pull-back is ``grad``."""
        return self._map(lambda space, x, g: space.covector(x, g), free, grad)

    def sample(self, uniform: PyTree, free: PyTree, spread: Number) -> PyTree:
        """Return coordinates for uniform numbers in ``[0, 1)``, like ``free``."""
        return self._map(lambda space, u, x: space.sample(u, x, spread), uniform, free)

    def require(self, hyper: PyTree, name: str = "hyper") -> None:
        """Raise ``ValueError`` with address, value and cure unless every leaf is inside."""
        try:
            faults = self._map(lambda space, leaf: space.fault(leaf) or "", hyper)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Problem.space is {self}, which does not fit {name}, of structure "
                f"{jax.tree.structure(hyper)}: give a space for each leaf, or one for all leaves "
                f"below a node. ({error})"
            ) from error
        addresses = jax.tree_util.tree_leaves_with_path(hyper)
        for (path, _), fault in zip(addresses, jax.tree.leaves(faults), strict=True):
            if fault:
                raise ValueError(f"{leaf_address(name, path)} {fault}")


def draw_around(uniform: Array, free: Array, spread: Number) -> Array:
    """Return numbers uniform within ``spread`` of ``free``."""
    return (free + spread * (2 * uniform - 1)).astype(free.dtype)


def clip_through(x: Array | np.ndarray, low: ArrayLike, high: ArrayLike) -> Array:
    """Return ``clip(x, low, high)`` with the slope of ``x``: for what rounding puts outside."""
    return jax.lax.stop_gradient(jnp.clip(x, low, high)) + (x - jax.lax.stop_gradient(x))


def first_outside(value: Value, inside: Callable[[np.ndarray], np.ndarray]) -> str | None:
    """Return the first entry of a concrete array that is not inside, as text."""
    if is_traced(value):
        return None
    array = np.asarray(value)
    bad = ~inside(array)
    if not bad.any():
        return None
    first = tuple(int(i) for i in np.argwhere(np.broadcast_to(bad, array.shape))[0])
    place = f" at index {list(first)}" if first else ""
    return f"is {array[first]:.6g}{place}"
