"""The estimator contract, and what an estimator may say about itself beside it."""

from typing import Protocol, runtime_checkable

from jax import Array

from bilevel.core.estimate import Estimate, InnerState
from bilevel.core.problem import Data, Problem
from bilevel.utils import Hyper, Key, Number, Params, PyTree


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
    """An estimator whose error falls with the inner work that it does: it can be adaptive."""

    def scaled(self, times: int) -> Estimator:
        """Return the estimator with ``times`` its inner work, its state of the same structure.

        More random directions, or more steps, with a longer window of averaging where there is
        noise. Raise ``ValueError`` where these settings leave no such number.
        """
        ...


def require_window(estimator: Estimator, solver: object, average: int) -> None:
    """Raise where steps are noisy and no window of them is averaged: more would not help."""
    if getattr(solver, "batch_size", None) is not None and not average:
        raise no_window(estimator)


def no_window(estimator: Estimator) -> ValueError:
    """Return the error of an estimator whose noise more inner work does not reduce."""
    return ValueError(
        f"Adaptive lengthens the window of averaged inner steps, and {estimator!r} has none: "
        "more steps would not reduce its noise. Use Forward(..., average=) or Implicit(..., "
        "average=), random directions (Forward(..., directions=)), or Evolution."
    )


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
