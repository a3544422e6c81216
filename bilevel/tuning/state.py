"""All that evolves in a run of the outer loop, when and why it stops, and what it found."""

from dataclasses import dataclass
from typing import NamedTuple

from jax import Array

from bilevel.core import Estimate, InnerState
from bilevel.utils import PyTree, register_node

Columns = dict[str, Array]


@dataclass(frozen=True)
class State:
    """All that evolves in a run: checkpoint this and nothing else.

    Parameters
    ----------
    step : ``()`` int32, outer steps done.
    hyper, estimate : the last hyperparameters that were evaluated, and their estimate; the update
        that follows from them is made first thing in the next step, so a state is always good.
    outer : the outer rule's state; ``lower`` : the inner level; ``key`` : the run's key.
    start : the start params (a cold start returns to them).
    scale : ``()``, size of the inner gradient where the run began, noise of single examples
        included; ``floor``, ``()``, the recent level of the inner residual: the two yardsticks for
        divergence.
    memory : what each hook remembers, by the name of its class.
    """

    step: Array
    hyper: PyTree
    estimate: Estimate
    outer: PyTree
    lower: InnerState
    key: Array
    start: PyTree
    scale: Array
    floor: Array
    memory: dict[str, PyTree]


class Step(NamedTuple):
    """A step as a hook sees it.

    ``state`` is the one after the step, ``made`` the estimate that the step made; ``kept`` and
    ``free`` are the state's estimate and ``made`` in the free coordinates of the outer rule. Where
    the solver diverged and the rule came back, the state keeps the estimate of before, and ``made``
    has neither value nor gradient: NaN. ``best`` is the value of the best point, for a rule that
    tracks one, else the step's own.
    """

    state: State
    made: Estimate
    kept: Estimate
    free: Estimate
    best: Array | None = None


@dataclass(frozen=True)
class Stop:
    """Why a block ended early: flag, and the numbers of the step that was refused, all ``()``.

    ``diverged_variables`` names the variables of an estimator that moves several, and
    flags the culprit.
    """

    diverged: Array
    value: Array
    residual: Array
    previous: Array
    diverged_variables: dict[str, Array]


@dataclass(frozen=True)
class Divergence:
    """When a run counts as diverged: it stops there, and returns the last good state.

    Parameters
    ----------
    limit : the inner gradient has reached so many times its initial scale. A sudden growth and
        numbers that are not finite are noticed at any limit.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.Divergence(limit=1e4)
    Divergence(limit=10000.0)
    """

    limit: float | Array = 100.0


for _node in (Divergence, State, Stop):
    register_node(_node)


@dataclass(frozen=True)
class Result:
    """What a run of :func:`tune` found.

    Parameters
    ----------
    hyper : after the last update (on divergence: the last that was evaluated and good; with early
        stopping: the best), in natural units. The rules of :mod:`bilevel.outer` that keep a best
        point end with that.
    params : of the lower level, at the last evaluation (with early stopping: at the best).
    history : arrays with a leading axis of outer steps: ``value``, ``grad_norm``,
        ``inner_residual``, ``linear_residual``, oracle counts, and what ``record`` adds. Row t
        belongs to the hyperparameters before update t; where the solver diverged and the rule
        came back, ``value`` is NaN. ``best``: the value at ``hyper``, were this the last step.
    estimate : the last one.
    state : all that evolves; ``tune(..., state=state)`` goes on bit for bit.
    diverged : ``()`` boolean.
    stopped : ``()`` boolean, whether early stopping ended the run; ``None`` without it.
    converged : ``()`` boolean, whether the run ended by ``tol``.
    message : ``None``, or why the run stopped early.
    """

    hyper: PyTree
    params: PyTree
    history: dict[str, Array]
    estimate: Estimate
    state: State
    diverged: Array
    stopped: Array | None = None
    message: str | None = None
    converged: Array | bool = False


register_node(
    Result,
    data_fields=[
        "hyper",
        "params",
        "history",
        "estimate",
        "state",
        "diverged",
        "stopped",
        "converged",
    ],
    meta_fields=["message"],
)
