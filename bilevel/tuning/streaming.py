"""A run on streams: a block of minibatches for every outer step, read while the one before runs."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax

from bilevel.core import Data, Estimator, Stream, take_block
from bilevel.estimators import innermost_estimator, map_innermost
from bilevel.solvers import SAGA, SVRG
from bilevel.tuning.state import State
from bilevel.utils import DataTree


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
        self._next: Future[Data] | None = None
        self._now = self._read()

    @property
    def data(self) -> Data:
        """The data of the step that was taken last."""
        return self._now

    def take(self, step: int) -> Data:
        """Return the data of a step, the last one or the next."""
        if step > self._step:
            self._now = self._read() if self._next is None else self._next.result()
            self._step, self._next = step, None
        if self._next is None and step + 1 < self._end:
            self._next = self._pool.submit(self._read)
        return self._now

    def estimator(self, estimator: Estimator) -> Estimator:
        """Return the estimator whose solver sees the minibatches of a block in their order."""
        if "inner" not in self._readers:
            return estimator
        rows = jax.tree.leaves(self._now.inner)[0].shape[0]
        size = rows // self._counts["inner"]

        def read_in_order(inside: Any) -> Estimator:
            if hasattr(inside, "minibatches"):
                outer = inside.batch_size[1] if isinstance(inside.batch_size, tuple) else size
                return replace(inside, batch_size=(size, outer), sampling="stream")
            if not hasattr(inside.solver, "sampling") or isinstance(inside.solver, SAGA | SVRG):
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


def open_streams(
    data: Data, estimator: Estimator, state: State | None, steps: int, adaptive: bool
) -> tuple[Estimator, Data, Feed]:
    """Return the estimator as it reads streams, the data of the first step, and of all steps.

    Raises
    ------
    ValueError : what needs all rows, or changes how many minibatches a call draws.
    """
    if adaptive:
        raise ValueError("Adaptive changes how many minibatches a call draws, a Stream does not.")
    feed = Feed(data, estimator, 0 if state is None else int(state.step), steps)
    return feed.estimator(estimator), feed.data, feed


def _count_minibatches(data: Data, estimator: Estimator) -> int:
    """Return how many minibatches a call draws; raise if the estimator needs all rows."""
    inside: Any = innermost_estimator(estimator)
    if not isinstance(data.inner, Stream):
        return 0
    if hasattr(inside, "minibatches"):  # of a method that draws its own
        return inside.minibatches
    if "stream" in getattr(inside, "handles", ()):
        return inside.steps
    raise ValueError(
        f"{type(inside).__name__} needs all inner rows, and data.inner is a Stream. Use Reverse, "
        "Forward, OneStep, UORO, PES or Evolution with SGD or Optax, or SingleLoop or DoubleLoop."
    )
