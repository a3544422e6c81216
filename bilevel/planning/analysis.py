"""What the search needs of a problem, whichever route found it."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.planning.search import Predictor
from bilevel.utils import PyTree


class FollowsReduced(Protocol):
    """What follows a run of SVRG or SAGA: :class:`bilevel.planning.reduced.Reduced`."""

    largest: float

    def errors(self, name: str, step_size: float, steps: int, target: float) -> np.ndarray:
        """Return the error every ``stride`` steps until it is ``target``."""
        ...

    def stride(self, name: str) -> int:
        """Return the number of steps between two errors."""
        ...

    def fits(self, name: str) -> bool:
        """Return whether all steps of a comparison are a matter of seconds."""
        ...


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
    reduced: FollowsReduced | None = None


def call_compiled(fn: Callable[[PyTree], PyTree], arguments: PyTree) -> PyTree:
    """Return ``fn(arguments)`` as one compiled program.

    Op by op, each product would compile alone.
    """
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], arguments)
    return jax.tree.map(lambda leaf: leaf[0], jax.lax.map(fn, one))
