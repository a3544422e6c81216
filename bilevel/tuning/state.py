"""All that evolves in a run of the outer loop, and why a run stops."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, InnerState, Problem, examples
from bilevel.estimators.base import Estimator, data_of_call, init_filled
from bilevel.tuning.adaptive import Work
from bilevel.utils import PyTree, norm, register_node, zeros_like


@dataclass(frozen=True)
class State:
    """All that evolves in a run: checkpoint this and nothing else.

    Parameters
    ----------
    step : ``()`` int32, outer steps done.
    hyper, estimate : the last hyperparameters that were evaluated, and their estimate; the update
        that follows from them is made first thing in the next step, so a state is always good.
    outer : the outer transformation's state; ``lower`` : the lower level; ``key`` : the run's key.
    start : the start params (a cold start returns to them).
    scale : ``()``, size of the inner gradient where the run began, noise of single examples
        included; ``floor``, ``()``, the recent level of the inner residual: the two yardsticks for
        divergence.
    work : :class:`Work`; how much of it the inner level does.
    best : by early stopping, ``None`` without.
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
    work: Work
    best: Any = None


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


def begin(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
) -> State:
    """The state before the first step."""
    lower = init_filled(problem, estimator, hyper, params, data, key)
    shapes, _ = jax.eval_shape(lambda x: estimator.step(problem, hyper, x, data, key), lower)
    step = jnp.zeros((), jnp.int32)
    scale = gradient_scale(problem, hyper, params, data_of_call(estimator, data, key))
    estimate = zeros_like(shapes)
    floor = inner_residual(estimate)
    work = Work.least(hyper)
    return State(step, hyper, estimate, tx.init(hyper), lower, key, params, scale, floor, work)


def gradient_scale(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> Array:
    """Largest of the inner gradient's norm and that of up to 16 single examples; ``()``."""
    some = min(examples(data.inner), 16)

    def size(batch: PyTree) -> Array:
        return norm(jax.grad(problem.inner)(params, hyper, batch))

    singles = jax.tree.map(lambda leaf: leaf[:some, None], data.inner)
    return jnp.maximum(size(data.inner), jnp.max(jax.vmap(size)(singles)))


def inner_residual(estimate: Estimate) -> Array:
    """The estimate's inner residual, 0 where it reports none; ``()``."""
    residual = estimate.evidence.inner_residual
    return jnp.zeros((), jnp.result_type(float)) if residual is None else residual
