"""What every estimator shares: the first state of its memory, the data of a call, its solver."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel.core import (
    ChoosesEstimator,
    Data,
    DrawsTasks,
    Estimate,
    Estimator,
    InnerState,
    Problem,
)
from bilevel.solvers import Solver
from bilevel.utils import Hyper, Key, Params, PyTree, strip_weak_types


def data_of_call(estimator: Estimator, data: Data, key: Key) -> Data:
    """Return the data that the losses see in a call with this key: one task's, if drawn."""
    return estimator.first_task(data, key) if isinstance(estimator, DrawsTasks) else data


def init_filled(
    problem: Problem,
    estimator: Estimator,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key,
    step: Callable[..., tuple[Estimate, InnerState]] | None = None,
) -> InnerState:
    """Return ``estimator.init`` with every ``None`` of its memory replaced by its zeros.

    So the first call and all later ones have one structure, hence one compilation. ``step`` is
    ``estimator.step`` in compiled form, ``(problem, estimator, hyper, lower, data, key)``, which
    then need not be traced again.
    """
    lower = strip_weak_types(estimator.init(params, data))

    def call(lower: InnerState) -> tuple[Estimate, InnerState]:
        if step is not None:
            return step(problem, estimator, hyper, lower, data, key)
        return estimator.step(problem, hyper, lower, data, key)

    _, after = jax.eval_shape(call, lower)

    def fill(have: PyTree, shape: PyTree) -> PyTree:
        if have is not None:
            return have
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

    return jax.tree.map(fill, lower, after, is_leaf=lambda leaf: leaf is None)


def solver_of(
    estimator: Estimator, problem: Problem, hyper: Hyper, params: Params, data: Data
) -> Solver | None:
    """Return the solver whose steps move the params; ``None`` where there is none.

    An estimator that chooses another one (``Auto``) may not run the solver that it was given.
    """
    if isinstance(estimator, ChoosesEstimator):
        estimator = estimator.choose(problem, hyper, params, data).estimator
    return getattr(estimator, "solver", None)
