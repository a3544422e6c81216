"""What a run of the outer loop found."""

from dataclasses import dataclass

from jax import Array

from bilevel.core import Estimate
from bilevel.tuning.state import State
from bilevel.utils import PyTree, register_node


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


register_node(
    Result,
    data_fields=["hyper", "params", "history", "estimate", "state", "diverged", "stopped"],
    meta_fields=["message"],
)
