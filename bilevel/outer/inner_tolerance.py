"""Tolerances of an estimator, raised together: what little accuracy an early outer step needs."""

from functools import partial
from typing import TypeVar

import jax.numpy as jnp
from jax import Array

from bilevel.utils import map_fields

_T = TypeVar("_T")

_NAMES = ("tol", "tolerance")  # of solvers and linear solvers; of bl.Auto
_PARTS = ("solver", "linear", "estimator")


def loosen_tolerances(estimator: _T, tolerance: Array | float) -> _T:
    """Return the estimator with every tolerance at least ``tolerance``; its own are the floor.

    Reaches ``LBFGS(tol=)``, ``Newton(tol=)``, the linear solvers' and ``Auto(tolerance=)``, through
    wrappers too. A solver without one runs all its steps as before.
    """
    return map_fields(estimator, _NAMES, partial(_at_least, tolerance), _PARTS)


def _at_least(least: Array | float, tolerance: Array | float) -> Array:
    return jnp.maximum(tolerance, least)
