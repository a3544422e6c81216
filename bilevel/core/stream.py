"""Data that do not fit, or are no arrays: minibatches from the host, a block of them per call."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import cast

import jax
import numpy as np

from bilevel.utils import DataTree, PyTree, describe, require_positive_int


@dataclass(frozen=True, eq=False)
class Stream:
    """Minibatches in place of arrays in :class:`bilevel.Data`, for :func:`bilevel.tune`.

    Every outer step takes the next K minibatches, one for each inner step; they are read and sent
    to the device while the step before runs. Where a run goes on (``state=``), so does its stream:
    by position, with the same seed. The solver's ``batch_size`` and ``sampling`` are the stream's.

    Parameters
    ----------
    source : with ``batch_size``, a pytree of things with a shape that can be indexed by rows (NumPy
        arrays, ``np.load(file, mmap_mode="r")``): every epoch is a permutation of the rows. Without
        it, minibatches, all of one shape: a loader that can be iterated over again (PyTorch's,
        grain's, a list), ``fn(epoch)`` that returns an iterable, or an iterator for a single pass.
    batch_size : examples per minibatch.
    seed : of the permutations.
    index : a minibatch is the pair ``(examples, row numbers [b])``, for one hyperparameter per row.

    Raises
    ------
    ValueError : when read: no more minibatches in an iterator, minibatches of different shapes.

    Examples
    --------
    >>> import numpy as np, bilevel as bl
    >>> stream = bl.Stream(np.arange(6.0), batch_size=2, index=True)
    >>> examples, rows = stream.block(0, 3)  # an epoch of three minibatches
    >>> sorted(rows.tolist()), bool((examples == rows).all())
    ([0, 1, 2, 3, 4, 5], True)
    """

    source: PyTree
    batch_size: int | None = None
    seed: int = 0
    index: bool = False
    _taken: list[int] = field(default_factory=lambda: [0], init=False, repr=False)

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if self.batch_size is not None:
            require_positive_int("Stream", "batch_size", self.batch_size)
            n = _count_rows(self.source)
            if self.batch_size > n:
                raise ValueError(f"Stream: batch_size={self.batch_size} is above the {n} rows.")
        elif self.index:
            raise ValueError(
                "Stream: only the rows of arrays have numbers: give batch_size=, or let the loader "
                "yield them with its minibatches."
            )
        elif not (callable(self.source) or hasattr(self.source, "__iter__")):
            raise TypeError(
                "Stream: without batch_size, source must be an iterable of minibatches or fn(epoch)"
                f" that returns one, got {type(self.source).__name__}."
            )

    def read(self, first: int = 0) -> Iterator[DataTree]:
        """Return the minibatches from number ``first`` on, as trees of NumPy arrays."""
        if self.batch_size is not None:
            yield from self._read_rows(first, self.batch_size)
        elif self._passes_once():
            yield from self._read_once(first)
        else:
            yield from islice(self._read_epochs(), first, None)

    def block(self, first: int, count: int) -> DataTree:
        """Return ``count`` minibatches from number ``first`` on, ``[count * b, ...]``."""
        return take_block(self.read(first), count)

    def _read_rows(self, first: int, size: int) -> Iterator[DataTree]:
        n = _count_rows(self.source)
        each, order, shuffled = n // size, np.arange(0), -1
        for number in count(first):
            epoch, k = divmod(number, each)
            if epoch != shuffled:
                order = np.random.default_rng([self.seed, epoch]).permutation(n)
                shuffled = epoch
            rows = order[k * size : (k + 1) * size]
            batch = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf[rows]), self.source)
            yield (batch, rows.astype(np.int32)) if self.index else batch

    def _passes_once(self) -> bool:
        return not callable(self.source) and iter(self.source) is self.source

    def _read_once(self, first: int) -> Iterator[DataTree]:
        taken = self._taken
        if first < taken[0]:
            raise ValueError(
                f"Stream: minibatch {first} is past, since an iterator passes once and is at "
                f"{taken[0]}. Give a loader, a list, or fn(epoch) that returns a new iterator."
            )
        for batch in self.source:
            taken[0] += 1
            if taken[0] > first:
                yield _as_arrays(batch)
        raise ValueError(
            f"Stream: the iterator ended after {taken[0]} minibatches, and the run needs more. "
            "Give a loader or fn(epoch), which begins again, or take fewer steps."
        )

    def _read_epochs(self) -> Iterator[DataTree]:
        for epoch in count():
            empty = True
            source = self.source(epoch) if callable(self.source) else self.source
            for batch in cast(Iterable[PyTree], source):
                empty = False
                yield _as_arrays(batch)
            if empty:
                raise ValueError(f"Stream: epoch {epoch} of the source has no minibatch.")


def take_block(reader: Iterator[DataTree], count: int) -> DataTree:
    """Return the next ``count`` minibatches as one tree of rows, in their order."""
    batches = list(islice(reader, count))
    shapes = [jax.tree.map(np.shape, batch) for batch in batches]
    for k, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"Stream: minibatch {k} of a block is {describe(batches[k])}, the first one "
                f"{describe(batches[0])}. All must be alike: drop the last of an epoch if it is "
                "smaller (drop_last=True), or pad it and weigh its rows by 0."
            )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def _count_rows(source: PyTree) -> int:
    return min(leaf.shape[0] for leaf in jax.tree.leaves(source))


def _as_arrays(batch: PyTree) -> DataTree:
    return jax.tree.map(np.asarray, tuple(batch) if isinstance(batch, list) else batch)
