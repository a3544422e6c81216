"""How a direction is estimated from minibatches: the choice that single-loop methods differ in.

    now       the minibatch direction at the current point
    previous  the same minibatch at the point of the step before;  snapshot: at a stored point
    full      the direction on all data at the current point, formed only where a rule is due

A direction is a tuple of parts; rules act part by part. Only a rule with a table per level asks for
one part per level that the direction averages over (``by_level``); to others it comes as one.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import as_setting, evaluate
from bilevel.single_loop.rates import StepSize
from bilevel.utils import PyTree, register_node, zeros_like


class Sample(NamedTuple):
    """All that a rule may combine; ``slots`` are ``(block, blocks)``, one pair per part."""

    now: tuple
    previous: tuple | None
    snapshot: tuple | None
    full: tuple | None
    due: bool | Array
    slots: tuple
    step: Array
    hyper: PyTree


class DirectionRule(Protocol):
    """A gradient estimator: what it needs, its memory, and how it combines."""

    looks_back: ClassVar[str | None]  # "previous", "snapshot" or None
    by_level: ClassVar[bool]  # whether the parts of the two levels are kept apart

    def due(self, count: Array, coin: Array, period: int) -> bool | Array:
        """Return whether this step forms the full direction (``()``, boolean); ``False``: never."""
        ...

    def init(self, parts: tuple, blocks: tuple[int, ...]) -> PyTree:
        """Memory before the first step, all zeros."""
        ...

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the direction, a tuple of parts, and the new memory."""
        ...


class Memoryless:
    """A rule that needs nothing but the minibatch."""

    looks_back: ClassVar[str | None] = None
    by_level: ClassVar[bool] = False

    def due(self, count: Array, coin: Array, period: int) -> bool | Array:
        """Never form a full direction."""
        del count, coin, period
        return False

    def init(self, parts: tuple, blocks: tuple[int, ...]) -> PyTree:
        """Return no memory."""
        del parts, blocks
        return ()


class Recursive(Memoryless):
    """A rule that keeps the last direction."""

    def init(self, parts: tuple, blocks: tuple[int, ...]) -> PyTree:
        """Return a direction of zeros."""
        del blocks
        return zeros_like(parts)


@dataclass(frozen=True)
class SGD(Memoryless):
    """The minibatch direction itself: ``now``.

    Examples
    --------
    >>> from bilevel import single_loop
    >>> single_loop.SGD()
    SGD()
    """

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the minibatch direction itself."""
        return sample.now, memory


@dataclass(frozen=True)
class Momentum(Recursive):
    """A moving average, ``(1 - weight) old + weight now``: less noise and some lag.

    Parameters
    ----------
    weight : of the present minibatch, in (0, 1]; a number or ``fn(count)``. The first is 1.
    """

    weight: StepSize = 0.1

    def __post_init__(self) -> None:
        """Normalise the weight."""
        _normalise_weight(self)

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the moving average."""
        weight = jnp.where(sample.step == 0, 1, _weight(self, sample))
        mean = jax.tree.map(
            lambda o, n: ((1 - weight) * o + weight * n).astype(n.dtype), memory, sample.now
        )
        return mean, mean


@dataclass(frozen=True)
class STORM(Recursive):
    """Momentum whose lag is corrected: ``now + (1 - weight) (old - previous)``.

    Cutkosky, Orabona, NeurIPS 2019.

    Parameters
    ----------
    weight : in (0, 1]; a number or ``fn(count)``. 1 is SGD; the first direction is ``now``.
    """

    weight: StepSize = 0.1
    looks_back: ClassVar[str | None] = "previous"

    def __post_init__(self) -> None:
        """Normalise the weight."""
        _normalise_weight(self)

    def direction(self, sample: Sample, memory: PyTree) -> tuple[tuple, PyTree]:
        """Return the corrected moving average."""
        keep = jnp.where(sample.step == 0, 0, 1 - _weight(self, sample))
        direction = jax.tree.map(
            lambda n, o, p: (n + keep * (o - p)).astype(n.dtype),
            sample.now,
            memory,
            sample.previous,
        )
        return direction, direction


for _rule, _leaves in ((SGD, []), (Momentum, ["weight"]), (STORM, ["weight"])):
    register_node(_rule, data_fields=_leaves, meta_fields=[])


def _normalise_weight(rule: "Momentum | STORM") -> None:
    """Store a number as it is, a function as a schedule."""
    object.__setattr__(rule, "weight", as_setting(type(rule).__name__, "weight", rule.weight))


def _weight(rule: "Momentum | STORM", sample: Sample) -> Array:
    """Return the weight, in (0, 1]: schedules such as ``c / (t + 1)`` may begin above 1."""
    return jnp.minimum(evaluate(rule.weight, sample.step, sample.hyper), 1)
