"""Why an inner solver diverged, in words: measured curvature against the solver's own limit."""

import warnings
from dataclasses import replace
from functools import partial

import jax
from jax import Array

from bilevel.core import Data, DrawsTasks, Estimator, MonitoredEstimator, Problem
from bilevel.estimators import (
    EvidenceWarning,
    bind_call,
    data_of_call,
    describe_error,
    find_nonfinite,
    solver_of,
)
from bilevel.solvers import largest_curvature, stability_limit
from bilevel.tuning.convergence import Convergence
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.evidence import is_unreliable
from bilevel.tuning.hooks import find_hook
from bilevel.tuning.loop import Loop
from bilevel.tuning.state import Result, State, Stop
from bilevel.utils import PyTree


class DivergenceWarning(RuntimeWarning):
    """The inner solver diverged and the run stopped at its last good state, or it must diverge."""


def step_size_warning(curvature: Array | float, limit: Array | float) -> str | None:
    """Return the warning about a step size above the stability limit; ``None`` where it is not.

    The measured curvature is a lower bound, so that only rounding needs a margin.
    """
    curvature, limit = float(curvature), float(limit)
    if not curvature > 1.001 * limit:
        return None
    return (
        f"the inner step size is above the stability limit where tune starts: the largest inner "
        f"curvature is {curvature:.4g}, and the solver's steps contract up to {limit:.4g} (2 "
        "/ step_size without momentum). The inner iterates will grow instead of converging. Make "
        f"the step size at least {1.1 * curvature / limit:.2g} times smaller, or start from "
        "hyperparameters with less curvature."
    )


def warn_of_result(loop: Loop, result: Result, max_error: float | None) -> Result:
    """Return the result with a message, and warn, if its last hypergradient is known to be bad."""
    problem, estimator, state = loop.problem, loop.estimator, result.state
    if problem.evidence == "off" or not is_unreliable(result.estimate, result.history, max_error):
        return result
    key = jax.random.fold_in(state.key, state.step - 1)
    at = problem, estimator, state.hyper, state.lower, loop.data, key
    text = describe_error(result.estimate, partial(find_nonfinite, *at))
    warnings.warn(text, EvidenceWarning, stacklevel=4)
    return replace(result, message=text if result.message is None else f"{result.message} {text}")


def explain_end(loop: Loop, result: Result, stop: Stop) -> Result:
    """Return the result with the message that says why the run ended."""
    state = result.state
    if stop.diverged:
        hyper = loop.proposed(state)
        text = divergence_message(loop.problem, loop.estimator, state, hyper, stop, loop.data)
        warnings.warn(text, DivergenceWarning, stacklevel=4)
    elif (stopping := find_hook(loop.hooks, EarlyStopping)) is not None and result.stopped:
        text = stopping.explain(state)
    elif (ended := find_hook(loop.hooks, Convergence)) is not None and result.converged:
        text = ended.explain(state)
    else:
        text = f"a hook ended the run after {int(state.step)} outer steps."
    return replace(result, message=text)


def divergence_message(
    problem: Problem, estimator: Estimator, state: State, hyper: PyTree, stop: Stop, data: Data
) -> str:
    """Return one paragraph: which step, which quantity, the likely cause and the cure."""
    key = jax.random.fold_in(state.key, state.step)
    where = "proposed there" if state.step else "where it starts"
    if found := find_nonfinite(problem, estimator, hyper, state.lower, data, key):
        return (
            f"tune stopped at outer step {int(state.step)}, at the hyperparameters {where}: "
            f"{found} The last good state, before that step, is returned."
        )
    if isinstance(estimator, MonitoredEstimator):
        problem = bind_call(problem, estimator, state.lower, key)
        return variable_message(problem, estimator, state, hyper, stop, data)
    text = (
        f"tune stopped at outer step {int(state.step)}: the inner solver diverged at the "
        f"hyperparameters {where} (inner residual {float(stop.residual):.3g} after "
        f"{float(stop.previous):.3g} one step before, outer value {float(stop.value):.4g}). "
    )
    data = data_of_call(estimator, data, key)
    problem = bind_call(problem, estimator, state.lower, key)
    solver = solver_of(estimator, problem, hyper, state.lower.params, data)
    curvature = float(largest_curvature(problem, hyper, state.lower.params, data, state.key))
    limit = stability_limit(solver, hyper, state.lower.solver_state)
    if limit is not None:
        limit = float(limit)
        if curvature > limit:
            text += (
                f"The largest inner curvature there is {curvature:.4g}, above the {limit:.4g} "
                "that the solver's step size can contract (2 / step_size without momentum): the "
                f"hyperparameters outgrew it. Make the step size at least "
                f"{1.1 * curvature / limit:.2g} times smaller, let it follow the hyperparameters "
                "(step_size=bl.Relative(0.5)), bound the hyperparameters, or take a smaller outer "
                "step. "
            )
        else:
            text += (
                f"The largest inner curvature there, {curvature:.4g}, is below the full-batch "
                f"limit {limit:.4g}: minibatch noise or a non-convex inner loss is the likely "
                "cause. Use a smaller step size or a larger batch. "
            )
    elif solver is None and not isinstance(estimator, DrawsTasks):
        text += (
            f"The largest inner curvature there is {curvature:.4g}, and no solver takes steps: the "
            "inner Hessian is singular or indefinite, so that no minimiser is defined. Add a "
            "penalty, or bound the hyperparameters. "
        )
    else:
        text += f"The largest inner curvature there is {curvature:.4g}. Use a smaller step size. "
    return text + "The last good state, before that step, is returned."


_CURES = {
    "w": "Use a smaller step_size or a larger batch.",
    "v": "Use a smaller adjoint_step, or a smaller step_size of its series, or a larger batch.",
    "y": "Use a smaller free_step or a larger batch.",
    "lambda": "Use a smaller outer step.",
}


def variable_message(
    problem: Problem,
    estimator: MonitoredEstimator,
    state: State,
    hyper: PyTree,
    stop: Stop,
    data: Data,
) -> str:
    """Return, of an estimator that moves several variables, which one left and what to change.

    One diverging variable takes the others with it. A step that is too large for the inner
    curvature is the cause wherever there is one; else the variable that was noticed is named.
    """
    curvature = float(largest_curvature(problem, hyper, state.lower.params, data, state.key))
    limits = estimator.stability_limits(hyper, state.lower)
    outgrown = [name for name, limit in limits.items() if curvature > float(limit)]
    noticed = [name for name, flag in stop.diverged_variables.items() if flag]
    name = (outgrown or noticed or list(stop.diverged_variables))[0]
    text = (
        f"tune stopped at outer step {int(state.step)}: {name} diverged (outer value "
        f"{float(stop.value):.4g}, inner residual {float(stop.residual):.3g} as last measured). "
    )
    if outgrown:
        text += (
            f"The largest inner curvature is {curvature:.4g}, above the {float(limits[name]):.4g} "
            "that its step contracts. "
        )
    text += _CURES[name.split()[0]]
    return text + " The last good state, before that step, is returned."
