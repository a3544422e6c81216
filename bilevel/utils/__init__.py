"""Pytrees, nodes, argument checks and control flow: what knows JAX but no bilevel problem."""

from bilevel.utils.branch import cond_without_select
from bilevel.utils.dependence import is_constant, unused_leaves
from bilevel.utils.nodes import register_node
from bilevel.utils.trees import (
    PyTree,
    all_finite,
    axpy,
    basis,
    descend,
    double,
    dtype,
    is_inexact,
    is_traced,
    largest,
    nbytes,
    norm,
    partition,
    size,
    strong,
    unbasis,
    unit_vectors,
    vdot,
    zeros_like,
)

__all__ = [
    "PyTree",
    "all_finite",
    "axpy",
    "basis",
    "cond_without_select",
    "descend",
    "double",
    "dtype",
    "is_constant",
    "is_inexact",
    "is_traced",
    "largest",
    "nbytes",
    "norm",
    "partition",
    "register_node",
    "size",
    "strong",
    "unbasis",
    "unit_vectors",
    "unused_leaves",
    "vdot",
    "zeros_like",
]
