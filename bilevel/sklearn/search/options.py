"""Options of the search for penalties."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Of the loss of the strongest penalties, which leave the intercept alone: for squared errors the
# variance of the target. Losses that differ by less differ by rounding: they are differences of
# sums of that size over up to thousands of terms, each rounded to 2e-16.
RESOLUTION = 1e-12
ITERATED = 1e-10  # that of losses whose inner solver iterates


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search for penalties.

    ``bounds [q, 2]`` of ``theta``; at most ``max_iter`` steps a stage, or until one gains less than
    ``tol``; ``n_jobs`` threads of the guard and the folds that it leaves out, ``guarded``, none by
    default. ``strength [q]``: how strongly each entry of ``theta`` regularises, by default all
    alike. Losses that differ by less than ``resolution`` of the strongest penalties' are equal.
    ``one_error``: end at :func:`find_one_error`. For one penalty the search ends where the gain to
    expect is below ``sharpness * tol``, as the root is found fast near it.
    """

    bounds: np.ndarray
    max_iter: int
    tol: float
    n_jobs: int | None = None
    guarded: Sequence[int] = ()
    strength: np.ndarray | None = None
    resolution: float = RESOLUTION
    one_error: bool = False
    sharpness: float = 0.03
