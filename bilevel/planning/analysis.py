"""What the search needs of a problem, whichever route found it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.planning.reduced import Reduced
from bilevel.planning.search import Predictor
from bilevel.utils import PyTree


class Analysis(NamedTuple):
    """One problem at its solution.

    Parameters
    ----------
    route : ``"dense"`` or ``"influence"``.
    solution : ``[n]``, in the order of ``ravel_pytree(params)``.
    exact, parts : the hypergradient ``[p]``, and the size of what it is a sum of.
    curvature : smallest and largest of the inner loss.
    limits, trusted : by batch size, the mean-square limit of the step size and the largest that
        theory is trusted with.
    predict : ``(step_size, batch_size, reads) ->`` a :class:`bilevel.planning.search.Predictor`,
        ``reads`` as in :class:`bilevel.planning.planner.Kind`.
    reduced : the problem for SVRG and SAGA, ``None`` where there is no theory of them.
    """

    route: str
    solution: np.ndarray
    exact: np.ndarray
    parts: float
    curvature: tuple[float, float]
    limits: dict[int | None, float]
    trusted: dict[int | None, float]
    predict: Callable[[float, int | None, str], Predictor]
    reduced: Reduced | None = None


def call_compiled(fn: Callable[[PyTree], PyTree], arguments: PyTree) -> PyTree:
    """Return ``fn(arguments)`` as one compiled program.

    Op by op, each product would compile alone.
    """
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], arguments)
    return jax.tree.map(lambda leaf: leaf[0], jax.lax.map(fn, one))
