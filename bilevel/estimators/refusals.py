"""Checks of problems while an estimator is traced, each with what would cure it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp

from bilevel.core import BoundLoss, Data, Equation, InnerState, Problem, inner_loss
from bilevel.estimators.residuals import full_gradient
from bilevel.solvers import NotUnrollable, Solver, start_solver
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    PyTree,
    describe,
    leaf_address,
    require_same,
    unused_leaves,
)

# Of a problem, beside two plain losses: what an estimator that sees the whole trajectory handles.
ALL_PARTS = ("has_state", "has_aux", "running", "stream", "is_equation")
_ONE_MODE = ("custom_vjp", "custom_lin")  # what JAX's own messages name
_NO_REVERSE = "Reverse-mode differentiation does not work"


def lacks_forward_mode(error: Exception) -> bool:
    """Return whether the error is JAX's of a function with a derivative for reverse mode alone."""
    return any(word in str(error) for word in _ONE_MODE)


@contextmanager
def explain_modes(estimator: object) -> Iterator[None]:
    """Say of an error of JAX's, that a function has no derivative of this mode, what would do."""
    name = type(estimator).__name__
    try:
        yield
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
        raise TypeError(
            f"{name} is differentiated in forward mode here, and something in it has a derivative "
            "for reverse mode alone (jax.custom_vjp). If a loss calls such a function, write it "
            "with jax.custom_jvp, which serves both modes, or take Reverse, or Implicit without "
            "bias. If this is a derivative of the estimate itself: Reverse has none in forward "
            "mode, so take jax.jacrev twice in place of jax.jacfwd and jax.hessian, or Forward."
        ) from error
    except ValueError as error:
        if _NO_REVERSE not in str(error):
            raise
        raise ValueError(
            f"{name} is differentiated in reverse mode here, and something in it is a loop of no "
            "fixed length (a linear solver, a line search, or a loop of a loss's own), which has "
            "no derivative in that mode. Take jax.jacfwd, or Reverse with a solver of plain steps; "
            "in a loss, write the loop with jax.lax.scan."
        ) from error


def check_losses(problem: Problem, hyper: Hyper, params: Params, data: Data) -> None:
    """Raise while tracing unless both losses map the given structures to a float scalar."""
    levels = [("inner", problem.inner, data.inner), ("outer", problem.outer, data.outer)]
    if isinstance(problem.inner, BoundLoss) and problem.running is not None:
        levels.append(("running", replace(problem.inner, level="running"), data.inner))
    for name, loss, batch in levels:
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if not jnp.ndim(leaf):
                raise ValueError(
                    f"{leaf_address(f'data.{name}', path)} is a scalar: every data leaf needs "
                    "a leading axis that counts examples. Put constants into the loss."
                )
        try:
            if isinstance(loss, Equation):
                part = "fixed_point" if loss.optimality is None else "optimality"
                image = jax.eval_shape(loss.image, params, hyper, batch)
                require_same(f"what problem.{part} returns", image, "params", params)
            out = jax.eval_shape(loss, params, hyper, batch)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"problem.{name} failed on params {describe(params)}, hyper "
                f"{describe(hyper)}, batch {describe(batch)}: "
                f"{str(error).rstrip('.')}. {_say_arguments(problem)} Do params, hyper and data "
                "have the structure that the loss expects?"
            ) from error
        scalar = jax.tree.structure(out) == jax.tree.structure(0) and out.shape == ()
        if not scalar or not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(
                f"problem.{name} must return a floating-point scalar, got "
                f"{describe(out)}. Take the mean over the batch; side results need has_aux=True, "
                "a model state has_state=True."
            )


def _say_arguments(problem: Problem) -> str:
    """Return with which arguments losses are called, and what would change them."""
    names = ["params", "hyper", "batch"]
    names += ["model_state"] * problem.has_state + ["key"] * problem.stochastic
    wanted = []
    if not problem.has_state:
        wanted.append("has_state=True for a model state")
    if not problem.stochastic:
        wanted.append("stochastic=True for a key")
    more = f"; Problem(..., {' and '.join(wanted)}) has one more" if wanted else ""
    return f"It is called with ({', '.join(names)}){more}."


def check_dependence(name: str, fn: Callable[[Hyper], PyTree], hyper: Hyper, cure: str) -> None:
    """Raise while tracing if the estimator would return a silent 0 for part of ``hyper``."""
    if unused := unused_leaves(fn, hyper):
        raise ValueError(f"{name}'s hypergradient does not depend on {', '.join(unused)}: {cure}")


def check_unrolled(
    name: str,
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    data: Data,
    key: Key,
) -> None:
    """Raise as :func:`check_dependence` does, also where steps must not be differentiated."""
    reason = None
    if isinstance(solver, NotUnrollable):
        reason = solver.why_not_unrolled(lower.solver_state)
    if reason is not None:
        raise ValueError(
            f"{name} cannot differentiate the steps of {type(solver).__name__}: {reason}. "
            "Use Implicit, which needs only the minimiser."
        )

    check_read(name, problem, solver, hyper, lower, data, key)


def check_read(
    name: str,
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    data: Data,
    key: Key,
) -> None:
    """Raise as :func:`check_dependence` does, for all that the solver's loop reads."""

    def everything(hyper: Hyper) -> PyTree:
        params, state = start_solver(problem, solver, hyper, lower, data)
        moved = solver.step(inner_loss(problem), params, hyper, data.inner, key, state)
        return params, moved, problem.outer(moved[0], hyper, data.outer)

    cure = (
        "neither problem.inner, problem.outer, problem.start nor the solver's step reads it, so "
        "its hypergradient would be a silent 0. Use it in the problem, or remove it from hyper."
    )
    check_dependence(name, everything, hyper, cure)


def unused_by_minimiser(problem: Problem, hyper: Hyper, params: Params, data: Data) -> list[str]:
    """Return addresses of hyperparameters on which neither minimiser nor outer loss depends."""

    def everything(hyper: Hyper) -> PyTree:
        outer = jax.value_and_grad(problem.outer)(params, hyper, data.outer)
        return full_gradient(problem, hyper, params, data), outer

    return unused_leaves(everything, hyper)


def check_minimiser(name: str, problem: Problem, hyper: Hyper, params: Params, data: Data) -> None:
    """Raise as :func:`check_dependence` does, for what the minimiser depends on."""
    if names := unused_by_minimiser(problem, hyper, params, data):
        raise ValueError(
            f"{name}'s hypergradient does not depend on {', '.join(names)}: neither does the inner "
            "minimiser (a step size, a start point, or nothing at all), and the entry would be a "
            "silent 0. Use Forward or Reverse, which differentiate the solver's steps."
        )
