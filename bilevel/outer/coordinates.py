"""The outer rule in free coordinates: it never knows of a constraint."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jax import Array

from bilevel.core import Estimate
from bilevel.outer.base import move
from bilevel.spaces.base import Spaces
from bilevel.utils import PyTree, norm, register_node


class CoordinateState(NamedTuple):
    """The coordinates, which have digits left where natural units have none; the rule's state."""

    free: PyTree
    outer: PyTree


@dataclass(frozen=True)
class Coordinates:
    """An outer transformation that moves the coordinates of a space.

    With ``hyper = natural(x)`` the transformation sees ``J(x)^T grad``, then ``x`` is held where
    the space can tell it from its ends.
    """

    tx: Any
    spaces: Spaces

    def init(self, hyper: PyTree) -> CoordinateState:
        """Coordinates, and the state of the transformation there."""
        free = self.spaces.free(hyper)
        return CoordinateState(free, self.tx.init(free))

    def apply(self, estimate: Estimate, state: CoordinateState) -> tuple[PyTree, CoordinateState]:
        """``(hyper, state)`` after an update by an estimate in natural units."""
        seen = to_coordinates(self, estimate, state)
        free, outer = move(self.tx, seen, state.outer, state.free, self.spaces.admit)
        free = self.spaces.admit(free)
        return self.spaces.natural(free), CoordinateState(free, outer)

    def best(self, state: CoordinateState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """That of a rule that keeps one, in natural units."""
        del hyper
        free, value = self.tx.best(state.outer, state.free, value)
        return self.spaces.natural(free), value

    def backtrack(
        self, before: CoordinateState, after: CoordinateState, hyper: PyTree
    ) -> tuple[CoordinateState, Array]:
        """That of a rule that comes back."""
        del hyper
        outer, hopeful = self.tx.backtrack(before.outer, after.outer, after.free)
        return CoordinateState(before.free, outer), hopeful

    def set_tolerance(self, estimator: Any, state: CoordinateState) -> Any:
        """That of a rule that sets tolerances."""
        return self.tx.set_tolerance(estimator, state.outer)


register_node(Coordinates, data_fields=["tx"], meta_fields=["spaces"])


def in_coordinates(spaces: Spaces | None, tx: Any) -> Any:
    """The transformation as it moves ``hyper``: in coordinates where there is a space."""
    return tx if spaces is None else Coordinates(tx, spaces)


def update(tx: Any, estimate: Estimate, state: PyTree, hyper: PyTree) -> tuple[PyTree, PyTree]:
    """``(hyper, state)`` after the update that an estimate asks for, in coordinates if any."""
    if isinstance(tx, Coordinates):
        return tx.apply(estimate, state)
    return move(tx, estimate, state, hyper)


def unwrap(tx: Any) -> Any:
    """The rule itself, which says what it can."""
    return tx.tx if isinstance(tx, Coordinates) else tx


def to_coordinates(tx: Any, estimate: Estimate, state: PyTree) -> Estimate:
    """The estimate as the transformation sees it: gradient and standard error in coordinates."""
    if not isinstance(tx, Coordinates):
        return estimate
    error = estimate.evidence.standard_error
    if error is not None:
        error = tx.spaces.errors(state.free, error)
    evidence = replace(estimate.evidence, standard_error=error)
    return Estimate(estimate.value, tx.spaces.pull(state.free, estimate.grad), evidence)


def history_columns(tx: Any, moved: Estimate) -> dict[str, Array]:
    """What the history says beside the norm in natural units: that which vanishes at an optimum."""
    return {"free_grad_norm": norm(moved.grad)} if isinstance(tx, Coordinates) else {}
