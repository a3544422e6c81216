"""The estimator contract, and what every estimator shares."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, Lower, Problem, inner_loss
from bilevel.solvers.base import NotUnrollable, Solver, start
from bilevel.utils import PyTree, axpy, norm, strong, unseen, validation


class Estimator(Protocol):
    """How the lower level moves and how ``d outer / d hyper`` is formed: two methods.

    It owns both, so that unrolled, implicit and single-loop methods share one contract. Estimators
    are frozen dataclasses registered as pytrees: counts static, tolerances and step sizes leaves.
    """

    def init(self, params: PyTree, data: Data) -> Lower:
        """The lower level before the first call; ``None`` in ``memory`` stands for zeros."""
        ...

    def step(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """Move the lower level, estimate value and hypergradient, say how good they are."""
        ...


@runtime_checkable
class NamesVariables(Protocol):
    """An estimator that moves more than the params, and says which variable has diverged.

    Its step is a move and a look at it, which costs as much and may serve several moves.
    """

    def move(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """``step`` without measuring anything; the evidence, but for counts, is the last look's."""
        ...

    def look(
        self, problem: Problem, hyper: PyTree, before: Lower, estimate: Estimate, after: Lower,
        data: Data,
    ) -> tuple[Estimate, Lower]:  # fmt: skip
        """What ``step`` returns: the evidence measured, where that is due."""
        ...

    def astray(self, estimate: Estimate, after: Lower, limit: Any) -> dict[str, Array]:
        """Each variable's name, and whether it has left all bounds, ``()``, boolean."""
        ...

    def contractible(self, hyper: PyTree, lower: Lower) -> dict[str, Array]:
        """The largest inner curvature that a variable's step contracts, where that is known."""
        ...


@runtime_checkable
class DrawsTasks(Protocol):
    """An estimator whose calls work on tasks that they draw from the data, not on the data itself.

    Losses, params and batches then belong to one task: who looks at them looks at the first one.
    """

    def first_task(self, data: Data, key: Array) -> Data:
        """The first task that a call with this key draws."""
        ...


def of_one_call(estimator: Any, data: Data, key: Array) -> Data:
    """The data that the losses see in a call with this key: one task's, where tasks are drawn."""
    return estimator.first_task(data, key) if isinstance(estimator, DrawsTasks) else data


def fresh(
    problem: Problem,
    estimator: Estimator,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
    step: Callable[..., Any] | None = None,
) -> Lower:
    """``estimator.init`` with every ``None`` of its memory filled by the zeros that stand there.

    So the first call and all later ones have one structure, hence one compilation. ``step`` is
    ``estimator.step`` in compiled form, ``(problem, estimator, hyper, lower, data, key)``, which
    then need not be traced again.
    """
    lower = strong(estimator.init(params, data))

    def call(lower: Lower) -> Any:
        if step is not None:
            return step(problem, estimator, hyper, lower, data, key)
        return estimator.step(problem, hyper, lower, data, key)

    _, after = jax.eval_shape(call, lower)

    def fill(have: Any, shape: PyTree) -> PyTree:
        if have is not None:
            return have
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

    return jax.tree.map(fill, lower, after, is_leaf=lambda leaf: leaf is None)


def check_losses(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> None:
    """Raise while tracing unless both losses map the given structures to a float scalar."""
    for name, loss, batch in (
        ("inner", problem.inner, data.inner),
        ("outer", problem.outer, data.outer),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if not jnp.ndim(leaf):
                raise ValueError(
                    f"{validation.where(f'data.{name}', path)} is a scalar: every data leaf needs "
                    "a leading axis that counts examples. Put constants into the loss."
                )
        try:
            out = jax.eval_shape(loss, params, hyper, batch)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"problem.{name} failed on params {validation.describe(params)}, hyper "
                f"{validation.describe(hyper)}, batch {validation.describe(batch)}: "
                f"{str(error).rstrip('.')}. Do params, hyper and data have the structure that the "
                "loss expects?"
            ) from error
        scalar = jax.tree.structure(out) == jax.tree.structure(0) and out.shape == ()
        if not scalar or not jnp.issubdtype(out.dtype, jnp.floating):
            raise ValueError(
                f"problem.{name} must return a floating-point scalar, got "
                f"{validation.describe(out)}. Take the mean over the batch."
            )


def check_visible(name: str, fn: Callable[[PyTree], Any], hyper: PyTree, cure: str) -> None:
    """Raise while tracing if the estimator would return a silent 0 for part of ``hyper``."""
    if blind := unseen(fn, hyper):
        raise ValueError(f"{name} cannot see {', '.join(blind)}: {cure}")


def check_unrolled(
    name: str, problem: Problem, solver: Solver, hyper: PyTree, lower: Lower, data: Data, key: Array
) -> None:
    """:func:`check_visible` for estimators that differentiate the solver's steps."""
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
    name: str, problem: Problem, solver: Solver, hyper: PyTree, lower: Lower, data: Data, key: Array
) -> None:
    """:func:`check_visible` for estimators that see all that the solver's loop reads."""

    def everything(hyper: PyTree) -> Any:
        params, state = start(problem, solver, hyper, lower, data)
        moved = solver.step(inner_loss(problem), params, hyper, data.inner, key, state)
        return params, moved, problem.outer(moved[0], hyper, data.outer)

    cure = (
        "neither problem.inner, problem.outer, problem.start nor the solver's step reads it, so "
        "its hypergradient would be a silent 0. Use it in the problem, or remove it from hyper."
    )
    check_visible(name, everything, hyper, cure)


def unseen_by_minimiser(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> list[str]:
    """Addresses of the hyperparameters that neither the minimiser nor the outer loss depends on."""

    def everything(hyper: PyTree) -> Any:
        outer = jax.value_and_grad(problem.outer)(params, hyper, data.outer)
        return full_gradient(problem, hyper, params, data), outer

    return unseen(everything, hyper)


def check_minimiser(name: str, problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> None:
    """:func:`check_visible` for estimators that see what the inner minimiser depends on."""
    if blind := unseen_by_minimiser(problem, hyper, params, data):
        raise ValueError(
            f"{name} cannot see {', '.join(blind)}: the inner minimiser does not depend on it (a "
            "step size, a start point, or nothing at all), so its hypergradient would be a silent "
            "0. Use Forward or Reverse, which differentiate the solver's steps."
        )


def inner_residual(
    problem: Problem, hyper: PyTree, before: PyTree, end: PyTree, data: Data, reference: Array
) -> tuple[Array, Array]:
    """``(|end| / reference, reference)`` for the full inner gradient ``end`` at the last iterate.

    The reference is the gradient's norm at the params ``before``, measured when it is still 0.
    """

    def measure() -> Array:
        return norm(full_gradient(problem, hyper, before, data)).astype(reference.dtype)

    reference = jax.lax.cond(reference > 0, lambda: reference, measure)
    return _relative(norm(end).astype(reference.dtype), reference), reference


def progress(
    problem: Problem, hyper: PyTree, before: PyTree, after: PyTree, data: Data, reference: Array
) -> tuple[Array, Array]:
    """:func:`inner_residual` at the params ``after``, by one program for both gradients.

    One after the other: XLA multiplies a matrix by two vectors slower than by one twice.
    """

    def size(params: PyTree) -> Array:
        return norm(full_gradient(problem, hyper, params, data)).astype(reference.dtype)

    def both() -> tuple[Array, Array]:
        sizes = jax.lax.map(size, jax.tree.map(lambda *x: jnp.stack(x), before, after))
        return sizes[0], sizes[1]

    reference, end = jax.lax.cond(reference > 0, lambda: (reference, size(after)), both)
    return _relative(end, reference), reference


def _relative(size: Array, reference: Array) -> Array:
    return jnp.where(size == 0, 0, size / reference)


def solver_of(estimator: Any, problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> Any:
    """The solver whose steps move the params; ``None`` where there is none.

    An estimator that chooses another one (``Auto``) may not run the solver that it was given.
    """
    if (choose := getattr(estimator, "choose", None)) is not None:
        estimator = choose(problem, hyper, params, data).estimator
    return getattr(estimator, "solver", None)


def full_gradient(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> PyTree:
    """Gradient of the inner loss over all inner examples, like ``params``.

    With a proximal part it is the proximal-gradient mapping ``params - prox(params - gradient)``,
    which vanishes at the minimiser as the gradient does without one.
    """
    gradient = jax.grad(problem.inner)(params, hyper, data.inner)
    if problem.prox is None:
        return gradient
    moved = problem.prox(axpy(-1, gradient, params), hyper, 1.0)
    return axpy(-1, moved, params)
