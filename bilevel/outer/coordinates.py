"""The outer rule in free coordinates: it never knows of a constraint."""

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, cast

from jax import Array

from bilevel.core import Estimate
from bilevel.outer.base import Backtracks, OuterRule, SetsTolerance, TracksBest, move_hyper
from bilevel.spaces import Spaces
from bilevel.utils import PyTree, norm, register_node

_E = TypeVar("_E")
_P = TypeVar("_P")


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

    tx: OuterRule
    spaces: Spaces

    def init(self, hyper: PyTree) -> CoordinateState:
        """Coordinates, and the state of the transformation there."""
        free = self.spaces.free(hyper)
        return CoordinateState(free, self.tx.init(free))

    def apply(self, estimate: Estimate, state: CoordinateState) -> tuple[PyTree, CoordinateState]:
        """Return ``(hyper, state)`` after an update by an estimate in natural units."""
        seen = to_coordinates(self, estimate, state)
        free, outer = move_hyper(self.tx, seen, state.outer, state.free, self.spaces.admit)
        free = self.spaces.admit(free)
        return self.spaces.natural(free), CoordinateState(free, outer)

    def best(self, state: CoordinateState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """Return the best point of a rule that tracks one, in natural units."""
        del hyper
        free, value = cast(TracksBest, self.tx).best(state.outer, state.free, value)
        return self.spaces.natural(free), value

    def backtrack(
        self, before: CoordinateState, after: CoordinateState, hyper: PyTree
    ) -> tuple[CoordinateState, Array]:
        """Return the state to propose again with, of a rule that backtracks, and its hope."""
        del hyper
        outer, hopeful = cast(Backtracks, self.tx).backtrack(before.outer, after.outer, after.free)
        return CoordinateState(before.free, outer), hopeful

    def set_tolerance(self, estimator: _E, state: CoordinateState) -> _E:
        """Return the estimator with the tolerances that a rule sets."""
        return cast(SetsTolerance, self.tx).set_tolerance(estimator, state.outer)


register_node(Coordinates, data_fields=["tx"], meta_fields=["spaces"])


AnyRule = OuterRule | Coordinates


def in_coordinates(spaces: Spaces | None, tx: OuterRule) -> AnyRule:
    """Return the rule as it moves ``hyper``: in coordinates where there is a space."""
    return tx if spaces is None else Coordinates(tx, spaces)


def update_hyper(
    tx: AnyRule, estimate: Estimate, state: PyTree, hyper: PyTree
) -> tuple[PyTree, PyTree]:
    """Return ``(hyper, state)`` after the update that an estimate asks for."""
    if isinstance(tx, Coordinates):
        return tx.apply(estimate, state)
    return move_hyper(tx, estimate, state, hyper)


def unwrap_rule(tx: AnyRule) -> OuterRule:
    """Return the rule itself, which says what it can."""
    return tx.tx if isinstance(tx, Coordinates) else tx


def find_capability(tx: AnyRule, protocol: type[_P]) -> _P | None:
    """Return the rule as it moves ``hyper`` if the rule itself follows an optional protocol."""
    return cast(_P, tx) if isinstance(unwrap_rule(tx), protocol) else None


def to_coordinates(tx: AnyRule, estimate: Estimate, state: PyTree) -> Estimate:
    """Return the estimate as the rule sees it: gradient and standard error in coordinates."""
    if not isinstance(tx, Coordinates):
        return estimate
    error = estimate.evidence.standard_error
    if error is not None:
        error = tx.spaces.errors(state.free, error)
    evidence = replace(estimate.evidence, standard_error=error)
    return Estimate(estimate.value, tx.spaces.pull(state.free, estimate.grad), evidence)


def history_columns(tx: AnyRule, moved: Estimate) -> dict[str, Array]:
    """Return the norm of the gradient in coordinates, which vanishes at an optimum."""
    return {"free_grad_norm": norm(moved.grad)} if isinstance(tx, Coordinates) else {}
