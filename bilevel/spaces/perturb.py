"""Finite steps of the hyperparameters that stay inside: for estimators that take differences."""

from bilevel.spaces.base import Spaces
from bilevel.utils import Number, PyTree, axpy


def free_coordinates(space: Spaces | None, hyper: PyTree) -> PyTree:
    """Return what is perturbed: all of it may be, without leaving the space."""
    return hyper if space is None else space.free(hyper)


def move_coordinates(
    space: Spaces | None, free: PyTree, scale: Number, along: PyTree, hyper: PyTree
) -> PyTree:
    """Return ``hyper`` with its coordinates moved by ``scale * along``."""
    if space is None:
        return axpy(scale, along, hyper)
    return space.natural(space.admit(axpy(scale, along, free)))


def in_natural_units(space: Spaces | None, free: PyTree, *slopes: PyTree) -> tuple[PyTree, ...]:
    """Return slopes along coordinates (and their errors) as gradients with these slopes."""
    return slopes if space is None else tuple(space.covector(free, slope) for slope in slopes)
