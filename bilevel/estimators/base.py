"""The estimator contract, and what every estimator shares."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, InnerState, Problem
from bilevel.utils import Hyper, Key, Params, PyTree, strong


class Estimator(Protocol):
    """How the lower level moves and how ``d outer / d hyper`` is formed: two methods.

    It owns both, so that unrolled, implicit and single-loop methods share one contract. Estimators
    are frozen dataclasses registered as pytrees: counts static, tolerances and step sizes leaves.
    """

    def init(self, params: Params, data: Data) -> InnerState:
        """The lower level before the first call; ``None`` in ``memory`` stands for zeros."""
        ...

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Move the lower level, estimate value and hypergradient, say how good they are."""
        ...


@runtime_checkable
class MonitoredEstimator(Protocol):
    """An estimator that moves more than the params, and says which variable has diverged.

    Its step is a move and a look at it, which costs as much and may serve several moves.
    """

    def update(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """``step`` without measuring anything; the evidence, but for counts, is the last look's."""
        ...

    def measure(
        self,
        problem: Problem,
        hyper: Hyper,
        before: InnerState,
        estimate: Estimate,
        after: InnerState,
        data: Data,
    ) -> tuple[Estimate, InnerState]:
        """What ``step`` returns: the evidence measured, where that is due."""
        ...

    def diverged(self, estimate: Estimate, after: InnerState, limit: Any) -> dict[str, Array]:
        """Each variable's name, and whether it has left all bounds, ``()``, boolean."""
        ...

    def stability_limits(self, hyper: Hyper, lower: InnerState) -> dict[str, Array]:
        """The largest inner curvature that a variable's step contracts, where that is known."""
        ...


@runtime_checkable
class DrawsTasks(Protocol):
    """An estimator whose calls work on tasks that they draw from the data, not on the data itself.

    Losses, params and batches then belong to one task: who looks at them looks at the first one.
    """

    def first_task(self, data: Data, key: Key) -> Data:
        """The first task that a call with this key draws."""
        ...


def data_of_call(estimator: Any, data: Data, key: Key) -> Data:
    """The data that the losses see in a call with this key: one task's, where tasks are drawn."""
    return estimator.first_task(data, key) if isinstance(estimator, DrawsTasks) else data


def init_filled(
    problem: Problem,
    estimator: Estimator,
    hyper: Hyper,
    params: Params,
    data: Data,
    key: Key,
    step: Callable[..., Any] | None = None,
) -> InnerState:
    """``estimator.init`` with every ``None`` of its memory filled by the zeros that stand there.

    So the first call and all later ones have one structure, hence one compilation. ``step`` is
    ``estimator.step`` in compiled form, ``(problem, estimator, hyper, lower, data, key)``, which
    then need not be traced again.
    """
    lower = strong(estimator.init(params, data))

    def call(lower: InnerState) -> Any:
        if step is not None:
            return step(problem, estimator, hyper, lower, data, key)
        return estimator.step(problem, hyper, lower, data, key)

    _, after = jax.eval_shape(call, lower)

    def fill(have: Any, shape: PyTree) -> PyTree:
        if have is not None:
            return have
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)

    return jax.tree.map(fill, lower, after, is_leaf=lambda leaf: leaf is None)


def solver_of(estimator: Any, problem: Problem, hyper: Hyper, params: Params, data: Data) -> Any:
    """The solver whose steps move the params; ``None`` where there is none.

    An estimator that chooses another one (``Auto``) may not run the solver that it was given.
    """
    if (choose := getattr(estimator, "choose", None)) is not None:
        estimator = choose(problem, hyper, params, data).estimator
    return getattr(estimator, "solver", None)
