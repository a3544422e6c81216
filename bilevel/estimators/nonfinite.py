"""Where the first number arose that is not finite: which loss, which derivative, which step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    ChoosesEstimator,
    Data,
    Estimator,
    InnerState,
    Problem,
    hold_model_state,
    inner_loss,
)
from bilevel.estimators.base import bind_call, data_of_call, solver_of
from bilevel.solvers import Carry, NotUnrollable, Solver, start_solver
from bilevel.utils import Hyper, Key, Params, PyTree, all_finite, norm, partition

_FAR = 1e6  # params so many times their first size have diverged: that has another cure
_ROOTS = (
    "Roots and norms have no derivative at 0: write jnp.sum(w**2) in place of "
    "jnp.linalg.norm(w)**2, jnp.sqrt(eps + x) in place of jnp.sqrt(x)"
)
_GUARD = "; a guard jnp.where(ok, f(x), 0) must also keep x itself away from where f has none."
_SECOND = f"{_ROOTS}, and use functions that are twice differentiable{_GUARD}"


def find_nonfinite(
    problem: Problem, estimator: Estimator, hyper: Hyper, lower: InnerState, data: Data, key: Key
) -> str | None:
    """Return what is not finite first, and the cure; ``None`` where it is none of the parts.

    Evaluated part by part along one more run of the solver from ``lower``: the inner loss and its
    derivatives at the start, each step and its derivative, the outer loss and its gradient at the
    end. What has grown to be infinite is a divergence, and none of these.
    """
    problem = bind_call(problem, estimator, lower, key)
    data = data_of_call(estimator, data, key)
    second, unrolled = _uses(estimator, problem, hyper, lower.params, data)
    solver = solver_of(estimator, problem, hyper, lower.params, data)
    params = lower.params
    if solver is not None:
        params, _ = start_solver(problem, solver, hyper, lower, data)
    where = "where the inner solver starts"
    if found := _of_inner_loss(problem, hyper, params, data, where, second):
        return found
    if solver is not None:
        steps = int(getattr(estimator, "steps", 1))
        found, (params, state) = _of_steps(
            problem, solver, hyper, lower, data, key, steps, unrolled
        )
        if found is not None or not _finite(params):
            return found
        problem = hold_model_state(problem, state)
    return _of_outer_loss(problem, hyper, params, data)


def _uses(
    estimator: Estimator, problem: Problem, hyper: Hyper, params: Params, data: Data
) -> tuple[bool, bool]:
    """Return whether second derivatives of the inner loss are taken, and derivatives of steps."""
    if isinstance(estimator, ChoosesEstimator):
        estimator = estimator.choose(problem, hyper, params, data).estimator
    while (inside := getattr(estimator, "estimator", None)) is not None:
        estimator = inside
    kind = getattr(estimator, "differentiates", "steps")
    return kind != "values", kind == "steps"


def _of_inner_loss(
    problem: Problem, hyper: Hyper, params: Params, data: Data, where: str, second: bool
) -> str | None:
    value, gradient = jax.value_and_grad(problem.inner)(params, hyper, data.inner)
    if not _finite(value):
        return (
            f"the inner loss itself is {value} {where}. Start from other params, or keep the "
            "arguments of logarithms, roots and quotients in their range."
        )
    if not _finite(gradient):
        return (
            f"the gradient of the inner loss is not finite {where} (inner loss {float(value):.4g})."
            f" {_ROOTS}, or start elsewhere{_GUARD}"
        )

    def slope(params: Params, hyper: Hyper) -> Array:
        inner = jax.grad(problem.inner)(params, hyper, data.inner)
        return sum(jnp.sum(x) for x in jax.tree.leaves(inner))  # pyright: ignore[reportReturnType]

    if second and not _finite(jax.grad(slope, argnums=(0, 1))(params, hyper)):
        return (
            f"a second derivative of the inner loss is not finite {where}, and the loss and its "
            f"gradient are. {_SECOND}"
        )
    return None


def _of_steps(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    lower: InnerState,
    data: Data,
    key: Key,
    steps: int,
    unrolled: bool,
) -> tuple[str | None, Carry]:
    """Return what is said of the first bad step, and the chain before it, or after the last."""
    loss, begun = inner_loss(problem), start_solver(problem, solver, hyper, lower, data)
    if isinstance(solver, NotUnrollable) and solver.why_not_unrolled(begun[1]) is not None:
        unrolled = False

    def move(k: Array, carry: Carry, hyper: Hyper) -> Carry:
        return solver.step(loss, carry[0], hyper, data.inner, jax.random.fold_in(key, k), carry[1])

    def differentiated(k: Array, carry: Carry) -> tuple[Carry, PyTree]:
        moving, fixed, merge = partition(carry)

        def of_floats(moving: list[Array], hyper: Hyper) -> tuple[list[Array], Carry]:
            moved = move(k, merge(moving, fixed), hyper)
            return partition(moved)[0], moved

        out, pull, moved = jax.vjp(of_floats, moving, hyper, has_aux=True)
        return moved, pull(jax.tree.map(jnp.ones_like, out))

    def plain(k: Array, carry: Carry) -> tuple[Carry, PyTree]:
        return move(k, carry, hyper), ()

    k, carry, moved = _first_bad(differentiated if unrolled else plain, begun, steps)
    if k == steps:
        return None, carry
    size = norm(carry[0])
    if not float(size) <= _FAR * (1 + float(norm(begun[0]))):
        return None, moved
    where = f"at inner step {k}"
    if k and (found := _of_inner_loss(problem, hyper, carry[0], data, where, unrolled)):
        return found, carry
    name = type(getattr(solver, "solver", solver)).__name__
    if not _finite(moved):
        text = f"the params after step {k} of {name} are not finite, and before it they are."
        return text, carry
    return (
        f"the derivative of step {k} of {name} is not finite, and the step itself is. "
        f"{_SECOND} Implicit differentiates no step."
    ), carry


def _first_bad(
    advance: Callable[[Array, Carry], tuple[Carry, PyTree]], begun: Carry, steps: int
) -> tuple[int, Carry, Carry]:
    """Return the first step with a number that is not finite, what was before and what it made."""

    def unfinished(loop: tuple) -> Array:
        k, _, _, good = loop
        return good & (k < steps)

    def body(loop: tuple) -> tuple:
        k, _, carry, _ = loop
        moved, derivative = advance(k, carry)
        good = all_finite((moved, derivative))
        return jnp.where(good, k + 1, k), carry, moved, good

    first = jnp.int32(0), begun, begun, jnp.array(True)
    k, before, moved, good = jax.lax.while_loop(unfinished, body, first)
    return int(k), moved if good else before, moved


def _of_outer_loss(problem: Problem, hyper: Hyper, params: Params, data: Data) -> str | None:
    outer = jax.value_and_grad(problem.outer, argnums=(0, 1))
    value, gradients = outer(params, hyper, data.outer)
    if not _finite(value):
        return (
            f"the outer loss is {value} at the params that the inner solver reached, which are "
            "finite. Keep the arguments of logarithms, roots and quotients in their range."
        )
    for gradient, name in zip(gradients, ("params", "hyper"), strict=True):
        if not _finite(gradient):
            return (
                f"the gradient of the outer loss in {name} is not finite where the inner solver "
                f"ended (outer loss {float(value):.4g}). {_ROOTS}{_GUARD}"
            )
    return None


def _finite(tree: PyTree) -> bool:
    return bool(all_finite(tree))
