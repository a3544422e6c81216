"""Finite steps of the hyperparameters that stay inside: for estimators that take differences."""

from typing import Any

from bilevel.spaces.base import Spaces
from bilevel.utils import PyTree, axpy


def coordinates(space: Spaces | None, hyper: PyTree) -> PyTree:
    """What is perturbed: all of it may be, without leaving the space."""
    return hyper if space is None else space.free(hyper)


def moved(space: Spaces | None, free: PyTree, scale: Any, along: PyTree, hyper: PyTree) -> PyTree:
    """``hyper`` with its coordinates moved by ``scale * along``."""
    if space is None:
        return axpy(scale, along, hyper)
    return space.natural(space.admit(axpy(scale, along, free)))


def in_natural_units(space: Spaces | None, free: PyTree, *slopes: PyTree) -> tuple[PyTree, ...]:
    """Slopes along the coordinates (and their errors) as the gradients that have these slopes."""
    return slopes if space is None else tuple(space.covector(free, slope) for slope in slopes)
