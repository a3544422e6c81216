"""All that evolves in a run of the outer loop, and why a run stops."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Estimate, InnerState
from bilevel.utils import PyTree, register_node


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


for _node in (State, Stop):
    register_node(_node)


def step_keys(state: State, length: int) -> Array:
    """Return the keys of the next steps, all at once: one by one they cost more than a step."""
    fold = partial(jax.random.fold_in, state.key)
    return jax.vmap(fold)(state.step + jnp.arange(length))
