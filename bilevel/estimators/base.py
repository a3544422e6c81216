"""The estimator contract, and what every estimator shares."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimate, InnerState, Problem
from bilevel.solvers.base import Solver
from bilevel.utils import Hyper, Key, Number, Params, PyTree, strong


@runtime_checkable
class Estimator(Protocol):
    """How the lower level moves and how ``d outer / d hyper`` is formed: two methods.

    It owns both, so that unrolled, implicit and single-loop methods share one contract. Estimators
    are frozen dataclasses registered as pytrees: counts static, tolerances and step sizes leaves.
    """

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the lower level before the first call; ``None`` in ``memory`` stands for zeros."""
        ...

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Move the lower level, estimate value and hypergradient, say how good they are."""
        ...


@runtime_checkable
class MonitoredEstimator(Protocol):
    """An estimator that moves more than the params, and says which variable has diverged.

    Its step is an update and a measurement, which costs as much and may serve several updates.
    """

    def update(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Take a ``step`` without measuring; the evidence, but for counts, is the last one's."""
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
        """Return what ``step`` returns: the evidence measured, where that is due."""
        ...

    def diverged(self, estimate: Estimate, after: InnerState, limit: Number) -> dict[str, Array]:
        """Return each variable's name, and whether it has left all bounds, ``()``, boolean."""
        ...

    def stability_limits(self, hyper: Hyper, lower: InnerState) -> dict[str, Array]:
        """Return the largest inner curvature that a variable's step contracts, where known."""
        ...


@runtime_checkable
class ScalesWork(Protocol):
    """An estimator whose noise falls with the inner work that it does: it can be adaptive."""

    def scaled(self, times: int) -> Estimator:
        """Return the estimator with ``times`` its inner work, its state of the same structure.

        More random directions, or more steps with a longer window of averaging. Raise
        ``ValueError`` where these settings leave no such number.
        """
        ...


@runtime_checkable
class Chosen(Protocol):
    """What an estimator has chosen."""

    @property
    def estimator(self) -> Estimator:
        """The one that runs."""
        ...


@runtime_checkable
class ChoosesEstimator(Protocol):
    """An estimator that hands over to another one: its own solver and steps may never run."""

    def choose(self, problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> Chosen:
        """Return what runs on this problem."""
        ...


@runtime_checkable
class DrawsTasks(Protocol):
    """An estimator whose calls work on tasks that they draw from the data, not on the data itself.

    Losses, params and batches then belong to one task: who looks at them looks at the first one.
    """

    def first_task(self, data: Data, key: Key) -> Data:
        """Return the first task that a call with this key draws."""
        ...


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
    lower = strong(estimator.init(params, data))

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
