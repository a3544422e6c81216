"""A solver that lives outside JAX, behind a callback to the host."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.buffer_callback import buffer_callback
from jax.typing import ArrayLike, DTypeLike

from bilevel.core import Loss, Problem
from bilevel.utils import DataTree, Hyper, Key, Params, PyTree, register_node, require_same


@dataclass(frozen=True)
class External:
    """Any function on NumPy arrays, for example a scikit-learn ``fit``; for ``Implicit``.

    ``fn(params, hyper, data) -> params`` minimises the inner problem itself, from ``params``, on
    the inner ``data``; one solver step is one call, so ``steps=1`` is usual. Under ``vmap`` the
    calls follow one another. ``fn`` must be a pure function, and must not call JAX.

    Parameters
    ----------
    fn : keep one function object: a new one is a new program, and compiles again.

    Raises
    ------
    TypeError : ``fn`` cannot be called.
    ValueError : an estimator that differentiates steps.
    jax.errors.JaxRuntimeError : ``fn`` raised, or returned params of another structure or shape.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpy as np, bilevel as bl
    >>> problem = bl.Problem(
    ...     lambda w, h, x: jnp.mean((x - w) ** 2) / 2 + h * w**2 / 2, lambda w, h, x: w
    ... )
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> solver = bl.External(lambda w, h, x: np.mean(x) / (1 + h))
    >>> bl.solve(problem, solver, 1.0, jnp.array(0.0), data, jax.random.key(0), steps=1)
    Array(1., dtype=float32)
    """

    fn: Callable[[Params, Hyper, DataTree], Params]

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if not callable(self.fn):
            raise TypeError(
                "External: fn must be a function (params, hyper, data) -> params on NumPy arrays, "
                f"got {type(self.fn).__name__}."
            )

    def why_not_unrolled(self, state: PyTree) -> str:
        """Return that it is not JAX."""
        return "it runs outside JAX, which cannot differentiate it"

    def check(self, problem: Problem) -> None:
        """Accept every problem: what ``fn`` minimises is its own affair."""

    def init(self, params: Params, data: DataTree) -> tuple[()]:
        """Return the empty state."""
        return ()

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: tuple[()]
    ) -> tuple[Params, tuple[()]]:
        """Make one call of ``fn``; neither the loss nor the key is used."""
        arguments = jax.tree.map(jnp.asarray, (params, hyper, data))
        moved = jax.lax.platform_dependent(*arguments, cpu=self._in_place, default=self._copied)
        return moved, state

    def _in_place(self, *arguments: PyTree) -> PyTree:
        """On XLA's own buffers; JAX is asked for nothing, so no thread of its pool is waited for.

        ``jax.pure_callback`` makes JAX arrays of the buffers, in the pool that runs the program:
        with one core that hangs, and the arrays are float32 whatever ``jax.enable_x64`` said.
        """

        def call(_: object, out: PyTree, *buffers: PyTree) -> None:
            moved = self._checked(*jax.tree.map(read_only, buffers))
            jax.tree.map(fill_buffer, out, moved)

        return buffer_callback(call, _shapes(arguments[0]), vmap_method="sequential")(*arguments)

    def _copied(self, *arguments: PyTree) -> PyTree:
        """On copies that the device sends to the host."""
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, arguments)
        packed = jax.tree.map(pack, arguments)

        def call(*packed: PyTree) -> PyTree:
            params, hyper, data = jax.tree.map(unpack, packed, dtypes)
            return jax.tree.map(pack_numpy, self._checked(params, hyper, data))

        moved = jax.pure_callback(call, _shapes(packed[0]), *packed, vmap_method="sequential")
        return jax.tree.map(jax.lax.bitcast_convert_type, moved, dtypes[0])

    def _checked(self, params: Params, hyper: Hyper, data: DataTree) -> PyTree:
        moved = jax.tree.map(np.asarray, self.fn(params, hyper, data))
        if jax.tree.structure(moved) == jax.tree.structure(params):
            moved = jax.tree.map(lambda x, w: x.astype(w.dtype), moved, params)
        require_same("what External.fn returned", moved, "params", params)
        return moved


register_node(External, data_fields=[], meta_fields=["fn"])


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def read_only(buffer: ArrayLike) -> np.ndarray:
    """Return a buffer of XLA's, which ``fn`` must not change."""
    array = np.asarray(buffer)
    array.flags.writeable = False
    return array


def fill_buffer(out: ArrayLike, values: np.ndarray) -> None:
    """Write ``values`` into a buffer of XLA's."""
    np.asarray(out)[...] = values


# JAX runs a pure callback in a thread of its own, where `jax.enable_x64` does not hold: there it
# would round float64 to float32. So numbers of 8 bytes cross over as pairs of 4 bytes.


def pack(leaf: Array) -> Array:
    """Return ``[*shape]`` of 8 bytes each as uint32 ``[*shape, 2]``; others as they are."""
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32) if leaf.dtype.itemsize == 8 else leaf


def pack_numpy(leaf: np.ndarray) -> np.ndarray:
    """Do on the host what :func:`pack` does."""
    return leaf[..., None].view(np.uint32) if leaf.dtype.itemsize == 8 else leaf


def unpack(leaf: ArrayLike, dtype: DTypeLike) -> np.ndarray:
    """Return the inverse of :func:`pack`, on the host."""
    array = np.asarray(leaf)
    return array if array.dtype == dtype else array.view(dtype)[..., 0]
