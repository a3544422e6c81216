"""One value and hypergradient, with its evidence: the first of the two functions."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
from jax import Array
from jax.stages import Compiled

from bilevel.core import Data, Estimate, Estimator, InnerState, Problem, require_arguments
from bilevel.estimators.base import bind_call, carry_model, data_of_call, init_filled
from bilevel.estimators.nonfinite import find_nonfinite
from bilevel.estimators.refusals import check_losses, explain_modes
from bilevel.estimators.warn import warn_of_error
from bilevel.utils import (
    FloatTreeLike,
    Hyper,
    Key,
    Params,
    PyTree,
    is_traced,
    require_variables,
    strip_weak_types,
)


def hypergradient(
    problem: Problem,
    estimator: Estimator,
    hyper: FloatTreeLike,
    params: FloatTreeLike,
    data: Data,
    key: Key,
    *,
    state: InnerState | None = None,
    model_state: PyTree = None,
    evidence: str | None = None,
    max_error: float = 0.5,
) -> tuple[Estimate, InnerState]:
    """Return value and hypergradient of ``outer(w*(hyper), hyper)``, and the inner state.

    Compiled once per problem, estimator structure and array shapes; a changed float, ``hyper`` or
    data of the same shape compiles nothing. Composes with ``jit`` and ``vmap``.

    Parameters
    ----------
    problem, estimator : what is differentiated, and how.
    hyper, params : float pytrees; the inner solver starts at ``params``. With ``problem.space``,
        ``hyper`` and ``estimate.grad`` are in natural units: no chain rule is applied here.
    data : :class:`bilevel.Data`.
    key : a JAX random key; the same key draws the same minibatches.
    state : the :class:`bilevel.InnerState` of an earlier call, to go on from there (warm start).
    model_state : where the model state of a problem that ``has_state`` begins; with ``state``, and
        afterwards, it is ``state.model_state``.
    evidence : ``"full"``, ``"auto"`` or ``"off"``, see :class:`bilevel.Problem`.
    max_error : warn above this relative error; outside ``jit`` and ``vmap``, and with a ``state``
        only if the result is there already: a loop that does not look never waits.

    Warns
    -----
    EvidenceWarning : ``estimate.relative_error`` is above ``max_error``; says why, and what helps.

    Returns
    -------
    ``(estimate, state)`` : ``estimate.grad`` is like ``hyper``; ``estimate.evidence`` says how good
    it is. A diverged solver shows there, as a residual above 1 or a non-finite value.

    Raises
    ------
    ValueError : structures that do not match, integer, empty or non-finite ``hyper`` or ``params``,
        a hyperparameter that the estimator does not depend on, or outside ``problem.space``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> estimator = bl.Implicit(bl.GradientDescent(step_size=0.5), steps=50)
    >>> w, h, key = jnp.array(0.0), jnp.array(1.0), jax.random.key(0)
    >>> estimate, state = bl.hypergradient(problem, estimator, h, w, data, key)
    >>> estimate.grad.round(4)  # (w* - 1.5) dw*/dh, w* = 2 / (1 + h)
    Array(0.25, dtype=float32)
    """
    require_arguments(problem, estimator, data, key)
    require_variables("hyper", hyper)
    problem.require_inside(hyper)
    hyper = strip_weak_types(hyper)
    if evidence is not None:
        problem = replace(problem, evidence=evidence)
    if state is None:
        require_variables("params", params)
    at = strip_weak_types(params if state is None else state.params)
    estimator = carry_model(problem, estimator, hyper, at, data, key, state, model_state)
    begun = state
    if begun is None:
        with explain_modes(estimator):
            begun = _init_state(problem, estimator, hyper, strip_weak_types(params), data, key)
    with explain_modes(estimator):
        estimate, after = _step(problem, estimator, hyper, strip_weak_types(begun), data, key)
    if not is_traced((estimate, hyper)) and problem.evidence != "off":
        error, begun = _relative_error(estimate), strip_weak_types(begun)
        find = partial(find_nonfinite, problem, estimator, hyper, begun, data, key)
        warn_of_error(estimate, error, max_error, wait=state is None, find=find)
    return estimate, after


def compiled_step(
    problem: Problem,
    estimator: Estimator,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key,
    model_state: PyTree = None,
) -> tuple[Compiled, Callable[[], tuple[Estimate, InnerState]]]:
    """Return the compiled program of one call, for XLA's analysis of it, and the call itself."""
    require_variables("hyper", hyper)
    require_variables("params", params)
    hyper = strip_weak_types(hyper)
    params = strip_weak_types(params)
    estimator = carry_model(problem, estimator, hyper, params, data, key, None, model_state)
    lower = _init_state(problem, estimator, hyper, params, data, key)
    compiled = _step.lower(problem, estimator, hyper, lower, data, key).compile()
    return compiled, partial(compiled, estimator, hyper, lower, data, key)


@partial(jax.jit, static_argnames="problem")
def _init_state(
    problem: Problem,
    estimator: Estimator,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key,
) -> InnerState:
    seen = data_of_call(estimator, data, key)
    check_losses(bind_call(problem, estimator, None, key), hyper, params, seen)
    return init_filled(problem, estimator, hyper, params, data, key, _step)


@jax.jit
def _relative_error(estimate: Estimate) -> Array:
    """Compute it in one program for what would be twenty small ones."""
    return estimate.relative_error


@partial(jax.jit, static_argnames="problem")
def _step(
    problem: Problem,
    estimator: Estimator,
    hyper: Hyper,
    lower: InnerState,
    data: Data,
    key: Key,
) -> tuple[Estimate, InnerState]:
    problem = bind_call(problem, estimator, lower, key)
    check_losses(problem, hyper, lower.params, data_of_call(estimator, data, key))
    return estimator.step(problem, hyper, lower, data, key)
