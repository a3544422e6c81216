"""What every estimator shares: its first memory, the data and problem of a call, its solver."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    BoundLoss,
    ChoosesEstimator,
    Data,
    DrawsTasks,
    Estimate,
    Estimator,
    InnerState,
    LossResult,
    Problem,
    ShownBatch,
    bind_losses,
    loss_key,
    require_model_state,
)
from bilevel.estimators.rebuild import innermost_estimator, map_innermost
from bilevel.solvers import ModelSolver, Solver, batch_of_step
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    PyTree,
    is_inexact,
    require_same,
    require_unchecked_axes,
    strip_weak_types,
    zeros_like,
)

_CURES = {
    "has_state": "Use Forward, Reverse, UORO, PES, Evolution, Implicit or OneStep.",
    "has_aux": "Use Forward, Reverse, UORO, PES, Evolution, Implicit or OneStep.",
    "running": "Use Forward, Reverse, UORO, PES or Evolution, which see the trajectory.",
    "is_equation": "Use Implicit with linear=bl.GMRES(...), Reverse or Forward.",
}


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


def carry_model(
    problem: Problem,
    estimator: Estimator,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key | None,
    lower: InnerState | None = None,
    model_state: PyTree = None,
) -> Estimator:
    """Return the estimator, its solver carrying what the losses have beside params.

    The model state begins as given, or as it is in ``lower``, from which a run goes on.

    Raises
    ------
    ValueError : an estimator that does not handle this; a ``shard_map`` with checks; no
        ``model_state`` for a problem that ``has_state``, or one for a problem that has none.
    """
    require_unchecked_axes((hyper, params, data, key))
    if model_state is None and lower is not None:
        model_state = lower.model_state
    require_model_state(problem, model_state)
    _require_handled(problem, innermost_estimator(estimator))
    if problem.is_plain or key is None:
        return estimator

    def carry(inside: Any) -> Estimator:
        solver: Solver | None = getattr(inside, "solver", None)
        if solver is None or isinstance(solver, ModelSolver):
            return inside
        state, aux = strip_weak_types(model_state), None
        if problem.has_state or problem.has_aux:
            try:
                found = _look_at_results(problem, solver, hyper, params, data, key, state)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError):
                found = LossResult(
                    jnp.zeros(()), state
                )  # the check of the losses says what is wrong
            state, aux = promote_state(state, found.model_state), zeros_like(found.aux)
        return replace(inside, solver=ModelSolver(solver, problem, state, aux))

    return map_innermost(estimator, carry)


def promote_state(state: PyTree, returned: PyTree) -> PyTree:
    """Return the state with the float dtypes in which the loss returns it, as after one step.

    Raises
    ------
    ValueError : a loss that returns another structure, or other shapes.
    """
    if jax.tree.structure(state) == jax.tree.structure(returned):

        def promote(x: Array, shape: jax.ShapeDtypeStruct) -> Array:
            both = is_inexact(x) and jnp.issubdtype(shape.dtype, jnp.inexact)
            return x.astype(shape.dtype) if both and x.shape == shape.shape else x

        state = jax.tree.map(promote, state, returned)
    name = "the new model state that problem.inner returns"
    require_same(name, returned, "model_state", state)
    return state


def bind_call(
    problem: Problem, estimator: Estimator, lower: InnerState | None, key: Key
) -> Problem:
    """Return the problem as a call sees it, at its key and the model state that it begins with."""
    model_state = None if lower is None else lower.model_state
    if model_state is None:
        solver = getattr(innermost_estimator(estimator), "solver", None)
        model_state = getattr(solver, "model_state", None)
    return bind_losses(problem, key, model_state)


def _require_handled(problem: Problem, estimator: Estimator) -> None:
    for part, cure in _CURES.items():
        if getattr(problem, part) and part not in getattr(estimator, "handles", ()):
            given = {"running": "running=...", "is_equation": "fixed_point=... or optimality=..."}
            raise ValueError(
                f"{type(estimator).__name__} does not handle "
                f"Problem({given.get(part, f'{part}=True')}). {cure}"
            )


def _look_at_results(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key,
    model_state: PyTree,
) -> LossResult:
    """Return shapes and dtypes of what the inner loss returns in a step."""

    def results() -> LossResult:
        batch = batch_of_step(solver, data.inner, key, solver.init(params, data.inner))
        of_loss = loss_key(key, "inner") if problem.stochastic else None
        shown = ShownBatch(batch, model_state, of_loss)
        return BoundLoss(problem, "inner").evaluate(params, hyper, shown)

    return jax.eval_shape(results)
