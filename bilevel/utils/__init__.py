"""Pytrees, nodes, argument checks and control flow: what knows JAX but no bilevel problem."""

from bilevel.utils.branch import only_if
from bilevel.utils.dependence import independent, unseen
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
    "descend",
    "double",
    "dtype",
    "independent",
    "is_inexact",
    "is_traced",
    "largest",
    "nbytes",
    "norm",
    "only_if",
    "partition",
    "register_node",
    "size",
    "strong",
    "unbasis",
    "unit_vectors",
    "unseen",
    "vdot",
    "zeros_like",
]
