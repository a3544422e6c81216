"""The solver contract, and the loop that every estimator runs it in."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, InnerState, Loss, Problem, inner_loss
from bilevel.utils import DataTree, Hyper, Key, Params, PyTree, strong
from bilevel.utils.validation import require_positive_int


class Solver(Protocol):
    """How ``params`` move: two methods, differentiable in ``params`` and ``hyper``.

    What else a solver knows about itself it says through the optional protocols of this module.

    One ``step`` is the map whose derivative everything else is about. The same key draws the same
    minibatch, so an iterate and its derivative see the same examples. Frozen dataclasses that are
    registered as pytrees (counts static, step sizes leaves) never recompile when a float changes.
    """

    def init(self, params: Params, data: DataTree) -> PyTree:
        """The solver's own state (momentum, permutation, count); ``data`` is the inner tree."""
        ...

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: PyTree,
    ) -> tuple[PyTree, PyTree]:
        """One step on ``loss(params, hyper, batch)``, the batch drawn from ``data`` by ``key``."""
        ...


@runtime_checkable
class DeclaresStability(Protocol):
    """A solver that knows its own limit: :func:`bilevel.tune` uses it to explain a divergence."""

    def max_curvature(self, hyper: Hyper, state: PyTree) -> Array:
        """Largest Hessian eigenvalue for which full-batch steps still contract; ``()``."""
        ...


@runtime_checkable
class NotUnrollable(Protocol):
    """A solver whose steps must not be differentiated (a line search, a host callback)."""

    def why_not_unrolled(self, state: PyTree) -> str | None:
        """The reason, as the end of a sentence on the solver; ``None`` if this state allows it."""
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
        """The state to begin a call with, of the same structure; ``hyper`` may have changed."""
        ...


@runtime_checkable
class Stops(Protocol):
    """A solver that knows when it is done; only for loops that nobody differentiates."""

    def stopped(self, state: PyTree) -> Array | None:
        """Whether further steps would change nothing, ``()``; ``None`` if it never stops."""
        ...


def require_fit(problem: Problem, solver: Solver) -> None:
    """Raise while tracing if the solver cannot minimise this problem."""
    if isinstance(solver, ChecksProblem):
        solver.check(problem)
    elif problem.prox is not None:
        raise ValueError(
            f"`{type(solver).__name__}` would ignore Problem.prox and minimise the smooth part "
            "alone. Use ProximalGradient, FISTA, SVRG or SAGA; a solver of your own that applies "
            "loss.prox says so by a method check(problem)."
        )


def start(problem: Problem, solver: Solver, hyper: Hyper, lower: InnerState, data: Data) -> Any:
    """``(params, solver_state)`` to begin from: carried, or ``problem.start(hyper, params)``."""
    require_fit(problem, solver)
    if problem.start is None:
        state = lower.solver_state
        return lower.params, solver.refresh(state) if isinstance(solver, Refreshes) else state
    params = problem.start(hyper, lower.params)
    return params, solver.init(params, data.inner)


def run(
    loss: Loss,
    solver: Solver,
    hyper: Hyper,
    carry: tuple[PyTree, PyTree],
    data: Data,
    key: Key,
    *,
    steps: int,
    first: Any = 0,
) -> tuple[PyTree, PyTree]:
    """Run steps ``first .. first + steps - 1`` from ``carry = (params, solver_state)``.

    Step ``k`` uses ``fold_in(key, k)``: keys are derived, so memory is independent of ``steps``.
    A solver that stops ends the loop.
    """

    def body(carry: Any, _: None) -> tuple[Any, None]:
        k, params, state = carry
        key_k = jax.random.fold_in(key, k)
        params, state = solver.step(loss, params, hyper, data.inner, key_k, state)
        return (k + 1, params, state), None

    initial = (jnp.asarray(first, jnp.int32), *carry)
    if not isinstance(solver, Stops) or solver.stopped(carry[1]) is None:
        (_, params, state), _ = jax.lax.scan(body, initial, length=steps)
        return params, state

    def unfinished(carry: Any) -> Array:
        stopped = jnp.asarray(solver.stopped(carry[2]))
        return (carry[0] < first + steps) & ~stopped

    _, params, state = jax.lax.while_loop(unfinished, lambda carry: body(carry, None)[0], initial)
    return params, state


def solve(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key,
    *,
    steps: int,
) -> PyTree:
    """Inner ``params`` after ``steps`` solver steps: the very loop that estimators differentiate.

    Step ``k = 0, 1, ...`` is ``solver.step(problem.inner, params, hyper, data.inner,
    jax.random.fold_in(key, k), state)``. Differentiable in ``hyper`` and ``params``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(lambda w, h, x: jnp.mean((x - w) ** 2), lambda w, h, x: w)
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> solver, key = bl.GradientDescent(step_size=0.25), jax.random.key(0)
    >>> bl.solve(problem, solver, 0.0, jnp.array(0.0), data, key, steps=50).round(4)
    Array(2., dtype=float32)
    """
    require_positive_int("solve", "steps", steps)
    hyper, params = strong(hyper), strong(params)
    carry = start(problem, solver, hyper, InnerState(params, solver.init(params, data.inner)), data)
    return run(inner_loss(problem), solver, hyper, carry, data, key, steps=steps)[0]
