"""Types of arrays that carry dtype and shape, of pytrees, and of random keys.

They are those of `jaxtyping <https://docs.kidger.site/jaxtyping>`_ where it is installed, so that
``jaxtyping.install_import_hook("bilevel", ...)`` checks every call at run time. The library itself
needs JAX, optax and NumPy only: without jaxtyping ``Float[Array, "n d"]`` is plain ``Array``.

``Float[Array, ""]`` is a scalar, ``"n d"`` a matrix, ``"..."`` any shape.
"""

from typing import TYPE_CHECKING, TypeAlias

from jax import Array
from jax.typing import ArrayLike

__all__ = [
    "Array",
    "ArrayLike",
    "Bool",
    "Count",
    "Counter",
    "DataTree",
    "Flag",
    "Float",
    "FloatTree",
    "FloatTreeLike",
    "Hyper",
    "Int",
    "Key",
    "Number",
    "Params",
    "PyTree",
    "Real",
    "Scalar",
    "Scalars",
    "Shaped",
]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, PyTree, Real, Shaped
    from jaxtyping import PRNGKeyArray as Key
else:
    try:
        from jaxtyping import Bool, Float, Int, PyTree, Real, Shaped
        from jaxtyping import PRNGKeyArray as Key
    except ImportError:

        class Shaped:
            """A placeholder: ``Shaped[Array, "n"]`` is ``Array``."""

            def __class_getitem__(cls, item: tuple[type, str]) -> type:
                """Return the type without its shape."""
                return item[0]

        class PyTree:
            """A placeholder: ``PyTree[...]`` is ``PyTree``."""

            def __class_getitem__(cls, item: object) -> type:
                """Return the placeholder itself."""
                return cls

        Bool = Float = Int = Real = Shaped
        Key = Array

# The words of this library: scalars, and those that ``vmap`` may have given leading axes; numbers
# that a user sets; trees of floats: any, of one structure within a call, from a user; examples.
Scalar: TypeAlias = Float[Array, ""]
Counter: TypeAlias = Int[Array, ""]
Scalars: TypeAlias = Float[Array, "..."]
Count: TypeAlias = int | float | Real[Array, "..."]
Flag: TypeAlias = Bool[Array, ""]
Number: TypeAlias = int | float | Real[Array, "..."]
FloatTree: TypeAlias = PyTree[Float[Array, "..."]]
FloatTreeLike: TypeAlias = PyTree[Float[ArrayLike, "..."]]
DataTree: TypeAlias = PyTree[Shaped[ArrayLike, "..."]]
if TYPE_CHECKING:  # which would look for a class of the structure's name
    Params: TypeAlias = PyTree
    Hyper: TypeAlias = PyTree
else:
    Params = PyTree[Float[Array, "..."], " P"]
    Hyper = PyTree[Float[Array, "..."], " H"]
