"""Argument checks shared by the package: what, where, what was expected, the likely cure."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

from bilevel.utils.trees import PyTree, is_inexact, is_traced, leaf_address, size


@runtime_checkable
class ProblemParts(Protocol):
    """What of a problem is looked at here: its parts beside the two losses."""

    @property
    def start(self) -> object:
        """``Problem.start``."""
        ...

    @property
    def prox(self) -> object:
        """``Problem.prox``."""
        ...

    @property
    def is_plain(self) -> bool:
        """``Problem.is_plain``."""
        ...

    @property
    def is_equation(self) -> bool:
        """``Problem.is_equation``."""
        ...


def not_callable(name: str, got: object) -> str:
    """Return that a function was expected."""
    return f"{name} must be a function (params, hyper, batch) -> scalar, got {type(got).__name__}."


def leading_axes(level: str, lengths: dict[str, int]) -> str:
    """Return that the leaves of one level count different numbers of examples."""
    listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
    return (
        f"data.{level}: the leading axes must all count the same examples, got {listed}. "
        "Were two arrays split differently, or is one transposed?"
    )


def require_finite(name: str, path: KeyPath, leaf: ArrayLike) -> None:
    """Raise if a concrete leaf holds NaN or infinity; tracers and other processes' rows pass."""
    if is_traced(leaf) or not is_inexact(leaf) or not getattr(leaf, "is_fully_addressable", True):
        return
    bad = ~np.isfinite(np.asarray(leaf))
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{leaf_address(name, path)} has {int(bad.sum())} NaN or infinite entries, the first "
            f"at index {first}. Drop or impute those entries, or check how the array was made."
        )


def require_variables(name: str, tree: PyTree) -> None:
    """Raise unless ``tree`` holds at least one entry and floating-point, finite leaves only."""
    if size(tree) == 0:
        raise ValueError(f"{name} is empty: there is nothing to differentiate. Pass float arrays.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(f"{leaf_address(name, path)} must be float numbers, got {leaf!r}.")
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)
        if not is_inexact(leaf):
            raise ValueError(
                f"{leaf_address(name, path)} has dtype {dtype}, which has no "
                "derivative. Use floating-point numbers, for example 1.0 instead of 1."
            )
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{leaf_address(name, path)} is complex ({dtype}): what is "
                "minimised must be real numbers, and JAX's gradient of a complex one points uphill "
                "for half of its parts. Pass the two parts, for example {'re': z.real, "
                "'im': z.imag}, and build z = re + 1j * im inside the losses; data may be complex."
            )
        require_finite(name, path, leaf)


def require_same(name: str, got: PyTree, expected_name: str, expected: PyTree) -> None:
    """Raise unless two trees agree in structure, shapes and dtypes."""
    if (a := jax.tree.structure(got)) != (b := jax.tree.structure(expected)):
        raise ValueError(f"{name} has structure {a}, but {expected_name} has {b}: they must match.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (path, x), y in pairs:
        if (jnp.shape(x), jnp.result_type(x)) != (jnp.shape(y), jnp.result_type(y)):
            raise ValueError(
                f"{leaf_address(name, path)} is {jnp.result_type(x)}{list(jnp.shape(x))}, but in "
                f"{expected_name} it is {jnp.result_type(y)}{list(jnp.shape(y))}: they must match."
            )


def require_positive_int(owner: str, name: str, value: object) -> None:
    """Raise unless ``value`` is a Python integer of at least one."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}.")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value}.")


def require_positive(owner: str, name: str, value: object) -> None:
    """Raise if a concrete number is not a finite positive one; arrays and tracers pass."""
    if isinstance(value, str | bytes):
        raise TypeError(f"{owner}: {name} must be a number or a function, got {value!r}.")
    if isinstance(value, int | float | np.number) and not (0 < value < float("inf")):
        raise ValueError(f"{owner}: {name} must be a positive finite number, got {value}.")


def require_tolerance(owner: str, tol: object) -> None:
    """Raise if a concrete number is no fraction to stop at; arrays and tracers pass."""
    if isinstance(tol, str | bytes):
        raise TypeError(f"{owner}: tol must be a number, got {tol!r}.")
    if isinstance(tol, int | float | np.number) and not 0 <= tol < 1:
        raise ValueError(f"{owner}: tol must lie in [0, 1), got {tol}.")


def require_unchecked_axes(tree: PyTree) -> None:
    """Raise inside a ``jax.shard_map`` that keeps books of what varies over its axes.

    There a gradient in what does not vary is summed over the devices, silently.
    """
    for leaf in jax.tree.leaves(tree):
        if not is_traced(leaf):
            continue
        kind = jax.typeof(leaf)  # until JAX 0.9 the set is an attribute of its own
        kind = getattr(kind, "manual_axis_type", kind)
        if getattr(kind, "varying", getattr(kind, "vma", None)):
            raise ValueError(
                "inside jax.shard_map, gradients in what is the same on all devices are summed "
                "over them, so that hypergradients would be wrong. Switch that off: "
                "jax.shard_map(..., check_vma=False)."
            )


def require_smooth(owner: str, problem: ProblemParts) -> None:
    """Raise if the inner problem is more than the minimisation of a smooth loss."""
    if problem.is_equation:
        raise ValueError(
            f"{owner} needs an inner loss, and this problem is an equation (fixed_point or "
            "optimality). Compare Implicit with Reverse(Picard()), or differentiate bl.solve."
        )
    if problem.start is not None:
        raise ValueError(
            f"{owner} solves the inner problem completely, and a minimiser does not depend on "
            "problem.start. Compare Forward with Reverse, or differentiate bl.solve."
        )
    if problem.prox is not None:
        raise ValueError(
            f"{owner} needs a twice differentiable inner objective, and problem.prox says that "
            "part of it is not. Compare Forward with finite differences of bl.solve."
        )
    if not problem.is_plain:
        raise ValueError(
            f"{owner} needs losses of params, hyper and batch alone, and those of this problem "
            "have a key, a model state, side results or a running loss. Replicated(estimator, n) "
            "measures the noise of any; bl.check holds key and state."
        )


def require_plain(owner: str, problem: ProblemParts) -> None:
    """Raise if the params do not simply go on from call to call by gradients of a smooth loss."""
    if problem.start is not None:
        raise ValueError(
            f"{owner} takes a step per call from where the last one ended, and problem.start says "
            "that every call begins anew. Use Forward or Reverse."
        )
    if problem.prox is not None:
        raise ValueError(
            f"{owner} needs a twice differentiable inner objective, and problem.prox says that "
            "part of it is not. Use Implicit or Forward with a proximal solver."
        )


def describe(tree: PyTree) -> str:
    """Return the shapes and dtypes of a tree, for an error message."""
    return str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree))
