"""Tolerances of an estimator, raised together: what little accuracy an early outer step needs."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax.numpy as jnp

_NAMES = ("tol", "tolerance")  # of solvers and linear solvers; of bl.Auto
_PARTS = ("solver", "linear", "estimator")


def loosened(estimator: Any, tolerance: Any) -> Any:
    """The estimator with every tolerance at least ``tolerance``; its own are the floor.

    Reaches ``LBFGS(tol=)``, ``Newton(tol=)``, the linear solvers' and ``Auto(tolerance=)``, through
    wrappers too. A solver without one runs all its steps as before.
    """
    if not is_dataclass(estimator) or isinstance(estimator, type):
        return estimator
    changes = {}
    for field in fields(estimator):
        value = getattr(estimator, field.name)
        if field.name in _NAMES and value is not None:
            changes[field.name] = jnp.maximum(value, tolerance)
        elif field.name in _PARTS and value is not None:
            changes[field.name] = loosened(value, tolerance)
    return replace(estimator, **changes) if changes else estimator
