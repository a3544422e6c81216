"""Which hyperparameters a function really depends on, read from its traced program.

An estimator that does not depend on a hyperparameter returns a silent 0. The traced program tells
before anything runs: a leaf that no live equation reads has no influence.
"""

from collections.abc import Callable

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from bilevel.utils.trees import PyTree, leaf_address

_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call"}


def unused_leaves(fn: Callable[[PyTree], PyTree], hyper: PyTree) -> list[str]:
    """Return the addresses of the leaves of ``hyper`` that ``fn(hyper)`` does not depend on."""
    jaxpr = jax.make_jaxpr(fn)(hyper).jaxpr
    live = _live_inputs(jaxpr, [True] * len(jaxpr.outvars))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(hyper)]
    return [leaf_address("hyper", path) for path, seen in zip(paths, live, strict=True) if not seen]


def is_constant(fn: Callable[[PyTree], PyTree], tree: PyTree) -> bool:
    """Return whether ``fn(tree)`` is a constant, as far as its traced program shows."""
    return len(unused_leaves(fn, tree)) == len(jax.tree.leaves(tree))


def _live_inputs(jaxpr: Jaxpr, wanted: list[bool]) -> list[bool]:
    """Return for each input whether a wanted output needs it; loops need all that they read."""
    live = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and not _constant(v)}
    for eqn in reversed(jaxpr.eqns):
        outs = [v in live for v in eqn.outvars]
        if any(outs):
            needed = zip(eqn.invars, _needs(eqn, outs), strict=True)
            live |= {v for v, n in needed if n and not _constant(v)}
    return [v in live for v in jaxpr.invars]


def _needs(eqn: JaxprEqn, outs: list[bool]) -> list[bool]:
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if eqn.primitive.name not in _CALLS or body is None:
        return [True] * len(eqn.invars)
    body = getattr(body, "jaxpr", body)
    if len(body.invars) != len(eqn.invars):
        return [True] * len(eqn.invars)
    return _live_inputs(body, outs)


def _constant(atom: object) -> bool:
    return isinstance(atom, Literal)
