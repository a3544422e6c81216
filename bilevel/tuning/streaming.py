"""A run on streams: a block of minibatches for every outer step, read while the one before runs."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import jax

from bilevel.core import Data, Estimator, Stream, take_block
from bilevel.estimators import innermost_estimator, map_innermost
from bilevel.utils import DataTree


@runtime_checkable
class ReadsStream(Protocol):
    """An estimator that says how many inner minibatches a call draws, one after the other."""

    @property
    def minibatches(self) -> int:
        """The minibatches of a call."""
        ...


class Feed:
    """The data of each outer step, of a run of ``steps`` from step ``first`` on."""

    def __init__(self, data: Data, estimator: Estimator, first: int, steps: int) -> None:
        """Open the streams where the run begins."""
        counts = {"inner": _count_minibatches(data, estimator), "outer": 1}
        self._data, self._counts, self._end = data, counts, first + steps
        self._readers: dict[str, Iterator[DataTree]] = {
            level: getattr(data, level).read(first * n)
            for level, n in counts.items()
            if isinstance(getattr(data, level), Stream)
        }
        self._pool, self._step = ThreadPoolExecutor(1), first
        self._next: Future[Data] = self._pool.submit(self._read)
        self._now = self._next.result()

    def take(self, step: int) -> Data:
        """Return the data of a step, the last one or the next."""
        if step > self._step:
            self._step, self._now = step, self._next.result()
        if step + 1 < self._end and self._next.done():
            self._next = self._pool.submit(self._read)
        return self._now

    def estimator(self, estimator: Estimator) -> Estimator:
        """Return the estimator whose solver sees the minibatches of a block in their order."""
        if "inner" not in self._readers:
            return estimator
        rows = jax.tree.leaves(self._now.inner)[0].shape[0]
        size = rows // self._counts["inner"]

        def read_in_order(inside: Any) -> Estimator:
            if isinstance(inside, ReadsStream):
                outer = inside.batch_size[1] if isinstance(inside.batch_size, tuple) else size
                return replace(inside, batch_size=(size, outer), sampling="stream")
            if not hasattr(inside.solver, "sampling"):
                raise ValueError(
                    f"{type(inside.solver).__name__} needs all rows, and data.inner is a Stream. "
                    "Use SGD or Optax."
                )
            solver = replace(inside.solver, batch_size=size, sampling="stream")
            return replace(inside, solver=solver)

        return map_innermost(estimator, read_in_order)

    def _read(self) -> Data:
        blocks = {level: take_block(r, self._counts[level]) for level, r in self._readers.items()}
        return replace(self._data, **jax.device_put(blocks))


def has_stream(data: Data) -> bool:
    """Return whether a level of the data is a stream."""
    return isinstance(data.inner, Stream) or isinstance(data.outer, Stream)


def _count_minibatches(data: Data, estimator: Estimator) -> int:
    """Return how many minibatches a call draws; raise if the estimator needs all rows."""
    inside = innermost_estimator(estimator)
    if not isinstance(data.inner, Stream):
        return 0
    if isinstance(inside, ReadsStream):
        return inside.minibatches
    if getattr(inside, "sees_steps", False):
        return inside.steps
    raise ValueError(
        f"{type(inside).__name__} needs all inner rows, and data.inner is a Stream. Use Reverse, "
        "Forward, OneStep, UORO, PES or Evolution with SGD or Optax, or SingleLoop or DoubleLoop."
    )
