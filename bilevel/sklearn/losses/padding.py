"""Shapes rounded up, so that data sets of similar size share one compiled program."""

import numpy as np


def round_up(n: int, least: int = 8) -> int:
    """Return the smallest padded length that holds ``n``.

    These are powers of two, above 64 four steps to each.

    Examples
    --------
    >>> [round_up(n) for n in (1, 8, 9, 33, 65, 100, 1000)]
    [8, 8, 16, 64, 80, 112, 1024]
    """
    if n <= least:
        return least
    power = 1 << (n - 1).bit_length()
    if power <= 64:
        return power
    step = power // 8
    return -(-n // step) * step


def pad(array: np.ndarray, *lengths: int | None) -> np.ndarray:
    """Add zeros behind each of the last axes, up to ``lengths``; ``None`` leaves an axis alone."""
    lead = array.ndim - len(lengths)
    sizes = array.shape[lead:]
    behind = [0 if n is None else n - m for n, m in zip(lengths, sizes, strict=True)]
    return np.pad(array, [(0, 0)] * lead + [(0, n) for n in behind])
