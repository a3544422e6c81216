"""The outer rule in free coordinates: it never knows of a constraint."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from bilevel.estimate import Estimate
from bilevel.spaces.base import Spaces
from bilevel.trees import PyTree, norm


class Placed(NamedTuple):
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

    def init(self, hyper: PyTree) -> Placed:
        """Coordinates, and the state of the transformation there."""
        free = self.spaces.free(hyper)
        return Placed(free, self.tx.init(free))

    def move(self, grad: PyTree, state: Placed, **extra: Any) -> tuple[PyTree, Placed]:
        """``(hyper, state)`` after an update by the gradient in natural units."""
        pulled = self.spaces.pull(state.free, grad)
        updates, outer = self.tx.update(pulled, state.outer, state.free, **extra)
        free = self.spaces.admit(optax.apply_updates(state.free, updates))
        return self.spaces.natural(free), Placed(free, outer)


jax.tree_util.register_dataclass(Coordinates, data_fields=["tx"], meta_fields=["spaces"])


def placed(spaces: Spaces | None, tx: Any) -> Any:
    """The transformation as it moves ``hyper``: in coordinates where there is a space."""
    return tx if spaces is None else Coordinates(tx, spaces)


def move(tx: Any, grad: PyTree, state: PyTree, hyper: PyTree, **extra: Any) -> tuple[Any, Any]:
    """``(hyper, state)`` after one update."""
    if isinstance(tx, Coordinates):
        return tx.move(grad, state, **extra)
    updates, state = tx.update(grad, state, hyper, **extra)
    return optax.apply_updates(hyper, updates), state


def as_moved(tx: Any, estimate: Estimate, state: PyTree) -> Estimate:
    """The estimate as the transformation sees it: gradient and standard error in coordinates."""
    if not isinstance(tx, Coordinates):
        return estimate
    error = estimate.evidence.standard_error
    if error is not None:
        error = tx.spaces.errors(state.free, error)
    evidence = replace(estimate.evidence, standard_error=error)
    return Estimate(estimate.value, tx.spaces.pull(state.free, estimate.grad), evidence)


def columns(tx: Any, moved: Estimate) -> dict[str, Array]:
    """What the history says beside the norm in natural units: that which vanishes at an optimum."""
    return {"free_grad_norm": norm(moved.grad)} if isinstance(tx, Coordinates) else {}
