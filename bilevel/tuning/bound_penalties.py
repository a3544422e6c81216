"""Spaces for penalties, with ends tied to the curvature of what they penalise."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Data, Problem
from bilevel.linear import largest_eigenvalue
from bilevel.spaces import Log
from bilevel.utils import is_traced, require_variables

SPAN = (1e-8, 1e2)
STEPS = 50  # products of a power iteration: far closer than an end need be


def bound_penalties(
    problem: Problem,
    hyper: Any,
    params: Any,
    data: Data,
    key: Array,
    span: tuple[float, float] = SPAN,
) -> Any:
    r"""Return the ``space=`` of a problem whose hyperparameters are penalties in natural units.

    With the inner loss ``L(w) + sum_j h_j R_j(w)``, the largest curvature ``c`` of ``L`` and, for
    the entries of one leaf together, ``p`` of ``sum_j R_j``, each leaf gets
    ``Log(span[0] c / p, span[1] c / p)``. Below, a penalty is felt only where curvatures
    are less than ``span[0] c``; above, at most ``1 / span[1]`` of a fit is left. Since ``c`` has
    the units of ``L``, the ends follow the units of the data.

    Parameters
    ----------
    hyper, params : points as for ``bl.tune``; curvatures are those at ``params``.
    key : of the first vectors of the power iterations.
    span : ends relative to ``c / p``. Columns whose squares differ by more than ``1 / span[0]``
        need a smaller one, or scaling.

    Returns
    -------
    tree like ``hyper`` with a :class:`~bilevel.spaces.Log` for every leaf.

    Raises
    ------
    ValueError : losses with keys, a model state or side results; a span that is not
        ``0 < low < high``; an inner loss that is not linear in ``hyper`` (logarithms of penalties,
        say) or to which a leaf adds no curvature; a call inside ``jit`` or ``vmap``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> x, y = jnp.diag(jnp.array([1.0, 2.0])), jnp.ones(2)
    >>> def outer(w, h, batch):
    ...     return jnp.sum((batch[0] @ w - batch[1]) ** 2) / 2
    >>> def inner(w, h, batch):
    ...     return outer(w, h, batch) + h * jnp.sum(w**2) / 2
    >>> data = bl.Data(inner=(x, y), outer=(x, y))
    >>> problem, key = bl.Problem(inner, outer), jax.random.key(0)
    >>> space = bl.bound_penalties(problem, 1.0, jnp.zeros(2), data, key)
    >>> f"{space.low:.0e} to {space.high:.0e}"
    '4e-08 to 4e+02'
    """
    if not (np.shape(span) == (2,) and 0 < span[0] < span[1]):
        raise ValueError(f"span must be (low, high) with 0 < low < high, got {span}.")
    if not problem.is_plain:
        raise ValueError(
            "bound_penalties: the losses have keys, a model state or side results. Give it a "
            "Problem of the same losses and penalties without them."
        )
    if is_traced((jnp.zeros(()), hyper, params, data, key)):
        raise ValueError(
            "bound_penalties: inside jax.jit or jax.vmap the numbers that ends are made of are not "
            "known. Call it before, outside of them, and use the space inside."
        )
    hyper = jax.tree.map(lambda h: jnp.asarray(h, float), hyper)  # 1 is a penalty too
    require_variables("params", params)
    params = jax.tree.map(jnp.asarray, params)

    def product(h: Any, v: Any) -> Any:
        gradient = jax.grad(problem.inner)
        return jax.jvp(lambda w: gradient(w, h, data.inner), (params,), (v,))[1]

    def added(v: Any, direction: Any, at: Any = hyper) -> Any:
        return jax.jvp(lambda h: product(h, v), (at,), (direction,))[1]

    none = jax.tree.map(jnp.zeros_like, hyper)
    leaves, treedef = jax.tree.flatten(hyper)
    largest = float(abs(largest_eigenvalue(lambda v: product(none, v), params, key, STEPS)))

    def unit_of(leaf: int) -> Any:
        units = [jnp.ones_like(h) if i == leaf else jnp.zeros_like(h) for i, h in enumerate(leaves)]
        return jax.tree.unflatten(treedef, units)

    for leaf in range(len(leaves)):
        _require_linear(partial(added, direction=unit_of(leaf)), hyper, params, key)

    def space_of(leaf: int) -> Log:
        hessian = partial(added, direction=unit_of(leaf))
        per_unit = float(largest_eigenvalue(hessian, params, key, STEPS))
        if not per_unit > 0 or not largest > 0:
            what = "it adds no positive curvature" if largest > 0 else "the loss has none itself"
            raise ValueError(
                f"bound_penalties: leaf {leaf} of hyper is no penalty at these params: {what}. "
                "Give its space by hand, such as Log(1e-6, 1e3)."
            )
        scale = largest / per_unit
        return Log(span[0] * scale, span[1] * scale)

    return jax.tree.unflatten(treedef, [space_of(leaf) for leaf in range(len(leaves))])


def _require_linear(added: Any, hyper: Any, params: Any, key: Any) -> None:
    """Refuse a part of the inner Hessian, per unit of a leaf, that depends on hyperparameters."""
    v = jax.tree.map(lambda p: jax.random.normal(key, p.shape, p.dtype), params)
    one, other = (
        jax.tree.leaves(added(v, at=jax.tree.map(lambda h, t=t: t * (jnp.abs(h) + 1), hyper)))
        for t in (1.0, 3.0)
    )
    # Beside the fit, whose curvature may be 1e6 times as large, rounding would hide it.
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in one + other)
    apart = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(one, other, strict=True))
    if not apart <= 100 * float(jnp.finfo(jnp.result_type(*one)).eps) * size:
        raise ValueError(
            "bound_penalties: the inner loss is not linear in hyper, so that its entries are no "
            "penalties in natural units. Write `h * penalty(w)` rather than `exp(h) * penalty(w)`."
        )
