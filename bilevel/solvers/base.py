"""The solver contract, and the loop that every estimator runs it in."""

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, InnerState, Loss, Problem, inner_loss, require_free_rows
from bilevel.solvers.repeat import CallKey, StepKey, draw_ahead, repeat_step, step_key
from bilevel.utils import (
    Counter,
    DataTree,
    Flag,
    Hyper,
    Key,
    Params,
    PyTree,
    Scalar,
    partition,
)

Carry: TypeAlias = tuple[Params, PyTree]  # params and solver state


@runtime_checkable
class Solver(Protocol):
    """How ``params`` move: two methods, differentiable in ``params`` and ``hyper``.

    What else a solver knows about itself it says through the optional protocols of this module.

    One ``step`` is the map whose derivative everything else is about. The same key draws the same
    minibatch, so an iterate and its derivative see the same examples. Frozen dataclasses that are
    registered as pytrees (counts static, step sizes leaves) never recompile when a float changes.
    """

    def init(self, params: Params, data: DataTree) -> PyTree:
        """Return the solver's own state (momentum, count, ...); ``data`` is the inner tree."""
        ...

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: PyTree,
    ) -> Carry:
        """Step on ``loss(params, hyper, batch)``, the batch drawn from ``data`` by ``key``."""
        ...


@runtime_checkable
class DeclaresStability(Protocol):
    """A solver that declares the largest curvature at which its full-batch step is stable.

    :func:`bilevel.tune` explains a divergence by it.
    """

    def max_curvature(self, hyper: Hyper, state: PyTree) -> Scalar | None:
        """Return the largest Hessian eigenvalue for which full-batch steps contract; ``()``.

        ``None`` where it is not known.
        """
        ...


@runtime_checkable
class NotUnrollable(Protocol):
    """A solver whose steps must not be differentiated (a line search, a host callback)."""

    def why_not_unrolled(self, state: PyTree) -> str | None:
        """Return the reason, as the end of a sentence, or ``None`` if this state allows it."""
        ...


@runtime_checkable
class ChecksProblem(Protocol):
    """A solver that needs a part of the problem, or that applies ``problem.prox``."""

    def check(self, problem: Problem) -> None:
        """Raise ``ValueError``, naming what is missing, unless the solver can minimise it."""
        ...


@runtime_checkable
class Refreshes(Protocol):
    """A solver whose state holds what ``hyper`` makes stale: a full gradient, a curvature pair."""

    def refresh(self, state: PyTree) -> PyTree:
        """Return the state to begin a call with, of the same structure, at a new ``hyper``."""
        ...


@runtime_checkable
class MeasuresProblem(Protocol):
    """A solver that measures the problem before a call: a relative step size, its limit."""

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: PyTree
    ) -> PyTree:
        """Return the state to begin a call with, of the same structure; not differentiated."""
        ...


@runtime_checkable
class Stops(Protocol):
    """A solver that knows when it is done; only for loops that nobody differentiates."""

    def stopped(self, state: PyTree) -> Flag | None:
        """Return whether further steps would change nothing, ``()``; ``None`` if it never stops."""
        ...


@runtime_checkable
class DrawsBatch(Protocol):
    """A solver whose step sees a minibatch, and which says which one.

    Needed for a model state, side results and a running loss, which see the same.
    """

    def drawn(self, data: DataTree, key: StepKey, state: PyTree) -> DataTree:
        """Return the minibatch that ``step`` with this key and state draws from ``data``."""
        ...


def require_fit(problem: Problem, solver: Solver) -> None:
    """Raise while tracing if the solver cannot minimise this problem."""
    if problem.is_equation and getattr(solver, "reads_loss", False):
        raise ValueError(
            f"`{type(solver).__name__}` compares values of the inner loss, and an equation "
            "(Problem.fixed_point, Problem.optimality) has none. Use Picard, Anderson or Newton."
        )
    if isinstance(solver, ChecksProblem):
        solver.check(problem)
    elif problem.prox is not None:
        raise ValueError(
            f"`{type(solver).__name__}` would ignore Problem.prox and minimise the smooth part "
            "alone. Use ProximalGradient, FISTA, SVRG or SAGA; a solver of your own that applies "
            "loss.prox says so by a method check(problem)."
        )


def start_solver(
    problem: Problem, solver: Solver, hyper: Hyper, lower: InnerState, data: Data
) -> Carry:
    """Return ``(params, solver_state)`` to begin from: as carried, or by ``problem.start``."""
    require_fit(problem, solver)
    require_free_rows(problem.inner, solver, lower.params, hyper, data.inner)
    params, state = begin_again(solver, (lower.params, lower.solver_state))
    if problem.start is not None:
        params = problem.start(hyper, params)
        state = solver.init(params, data.inner)
    if isinstance(solver, MeasuresProblem):
        state = solver.measure(inner_loss(problem), params, hyper, data.inner, state)
    return params, state


def batch_of_step(solver: Solver, data: DataTree, key: StepKey, state: PyTree) -> DataTree:
    """Return the minibatch that a step with this key and state sees.

    Raises
    ------
    ValueError : a solver that draws minibatches and does not say which.
    """
    if isinstance(solver, DrawsBatch):
        return solver.drawn(data, key, state)
    if getattr(solver, "batch_size", None) is None:
        return data
    raise ValueError(
        f"{type(solver).__name__} draws minibatches and does not say which, so a model state, side "
        "results or a running loss cannot see them. Give it a method drawn(data, key, state) that "
        "returns the minibatch of step, or use SGD or Optax."
    )


def begin_again(solver: Solver, carry: Carry) -> Carry:
    """Return where a call begins that goes on from ``carry``: what is stale is marked so."""
    params, state = carry
    return params, solver.refresh(state) if isinstance(solver, Refreshes) else state


def run_steps(
    loss: Loss,
    solver: Solver,
    hyper: Hyper,
    carry: Carry,
    data: Data,
    key: Key | CallKey,
    *,
    steps: int,
    first: int | Array = 0,
    average: int = 0,
) -> Carry:
    """Run steps ``first .. first + steps - 1`` from ``carry = (params, solver_state)``.

    Step ``k`` uses ``fold_in(key, k)``: keys are derived, so memory is independent of ``steps``.
    A solver that stops ends the loop. With ``average`` the floating-point leaves returned are
    means over the last ``average`` steps.
    """
    return run_counted(
        loss, solver, hyper, carry, data, key, steps=steps, first=first, average=average
    )[0]


def run_counted(
    loss: Loss,
    solver: Solver,
    hyper: Hyper,
    carry: Carry,
    data: Data,
    key: Key | CallKey,
    *,
    steps: int,
    first: int | Array = 0,
    average: int = 0,
) -> tuple[Carry, Counter | int]:
    """Return what :func:`run` does, and how many steps were taken before the solver stopped."""

    keys = draw_ahead(solver, data.inner, key, steps, first)

    def advance(k: Array, carry: Carry) -> Carry:
        params, state = carry
        return solver.step(loss, params, hyper, data.inner, step_key(keys, k), state)

    plain, taken = steps - average, steps
    if not isinstance(solver, Stops) or solver.stopped(carry[1]) is None:
        carry, _ = repeat_step(advance, carry, first=first, length=plain)
    else:
        end, carry = _run_until_stopped(advance, solver, carry, first, plain)
        taken = end - first + average
    if not average:
        return carry, taken
    carry, mean = repeat_step(
        advance, carry, first=first + plain, length=average, averaged=lambda c: partition(c)[0]
    )
    _, fixed, merge = partition(carry)
    return merge(mean, fixed), taken


def _run_until_stopped(
    advance: Callable[[Array, Carry], Carry],
    solver: Stops,
    carry: Carry,
    first: int | Array,
    n: int,
) -> tuple[Counter, Carry]:
    """Run at most ``n`` steps, to the count that is returned; not differentiable in reverse."""

    def unfinished(loop: tuple[Array, Carry]) -> Array:
        k, (_, state) = loop
        return (k < first + n) & ~jnp.asarray(solver.stopped(state))

    def body(loop: tuple[Array, Carry]) -> tuple[Array, Carry]:
        k, carry = loop
        return k + 1, advance(k, carry)

    return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), carry))
