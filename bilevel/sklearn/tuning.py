"""From a grid to the best point: the best common penalty, a descent from there, and a guard.

Never worse than the grid on the folds: each stage starts at the best point so far and keeps it
unless the outer loss falls. The guard asks, for penalties that are many, how far they generalise:
the descent is repeated without each fold, and scored on that fold. It follows them as far as the
score is best, and not at all unless the gain is above its own standard error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from bilevel.sklearn.descent import Evaluation, Outer, descend, to_host

SHRINKAGE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # how much of the way from common to own penalties
MOST_GUARDED = 10  # folds that the guard leaves out, one after the other


@dataclass(frozen=True)
class Search:
    """How to search.

    ``bounds [q, 2]`` of ``theta``; at most ``max_iter`` steps a stage, or until one gains less than
    ``tol``; ``n_jobs`` threads and ``guarded`` folds of the guard, 0 for none.
    """

    bounds: np.ndarray
    max_iter: int
    tol: float
    n_jobs: int | None = None
    guarded: int = 0


@dataclass(frozen=True)
class Found:
    """What :func:`tuned` found.

    ``theta [q]``, its :class:`Evaluation`; ``path [steps + 1, q]`` with ``values``, from the best
    grid point on; ``grid``, the outer loss at each grid point; ``shrinkage``, the part of the way
    from the common penalty that the guard allowed, and ``guard``, the loss it saw for each part.
    """

    theta: np.ndarray
    evaluation: Evaluation
    path: np.ndarray
    values: np.ndarray
    grid: np.ndarray
    shrinkage: float
    guard: np.ndarray | None


def tuned(
    outer_of: Callable[[int | None], Outer],
    grid: np.ndarray,
    stages: list[np.ndarray],
    search: Search,
) -> Found:
    """Tune ``theta`` for ``outer_of(None)``, in float64.

    Parameters
    ----------
    outer_of : of a fold: the problem without it; of ``None``: the problem.
    grid : ``[G, q]``, constant on the groups of the first stage.
    stages : the free entry that each entry of ``theta`` uses, ``[q]``, of one stage after the
        other; each descends from where the one before ended, the last under the guard.
    """
    with jax.enable_x64(True):
        return _tuned(outer_of, grid, stages, search)


def _tuned(
    outer_of: Callable[[int | None], Outer],
    grid: np.ndarray,
    stages: list[np.ndarray],
    search: Search,
) -> Found:
    outer = outer_of(None)
    values = np.array([float(outer(theta).value) for theta in grid])
    values = np.where(np.isfinite(values), values, np.inf)
    best = int(np.argmin(values))
    if not np.isfinite(values[best]):
        raise ValueError(
            "The cross-validation loss is not finite at any point of the grid of penalties. Are "
            "the columns of X of very different size? Scale them, or give larger alphas."
        )
    path, losses = [grid[best]], [values[best]]
    for stage in stages[:1] if search.guarded else stages:
        _extend(path, losses, outer, stage, search)
    shrinkage: float = 1.0
    seen: Any = None
    if search.guarded:
        common = path[-1]
        for stage in stages[1:]:
            _extend(path, losses, outer, stage, search)
        way = _way(common, path[-1])
        own = np.array([float(outer(theta).value) for theta in way])
        seen = _guard(outer_of, common, stages[1:], search)
        gain = seen[:, :1] - seen
        error = gain.std(0, ddof=1) / np.sqrt(len(gain))
        allowed = (own <= own[0]) & (gain.mean(0) > error)
        chosen = int(np.argmax(np.where(allowed, gain.mean(0), 0)))
        seen = seen.mean(0)
        shrinkage = SHRINKAGE[chosen]
        if shrinkage < 1:
            path.append(way[chosen])
            losses.append(own[chosen])
    theta = path[-1]
    at = to_host(outer(theta))
    return Found(theta, at, np.array(path), np.array(losses), values, shrinkage, seen)


def _way(start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    return [start + part * (end - start) for part in SHRINKAGE]


def _extend(path: list, losses: list, outer: Outer, stage: np.ndarray, search: Search) -> None:
    """Append the steps of one stage, if they lead down."""
    phi, bounds = np.zeros(stage.max() + 1), np.zeros((stage.max() + 1, 2))
    phi[stage], bounds[stage] = path[-1], search.bounds
    steps, values = descend(outer, phi, stage, bounds, max_iter=search.max_iter, tol=search.tol)
    last = len(values) - 1
    while last > 0 and not values[last] <= losses[-1]:
        last -= 1
    path.extend(steps[1 : last + 1][:, stage])
    losses.extend(values[1 : last + 1])


def _guard(
    outer_of: Callable[[int | None], Outer], common: np.ndarray, stages: list, search: Search
) -> np.ndarray:
    """``[folds, parts of the way]``: the loss on each fold of penalties tuned without it."""

    def one(k: int) -> list[float]:
        with jax.enable_x64(True):  # holds in one thread
            outer = outer_of(k)
            path, losses = [common], [float(outer(common).value)]
            for stage in stages:
                _extend(path, losses, outer, stage, search)
            return [float(outer(theta).losses[-1]) for theta in _way(common, path[-1])]

    run = Parallel(n_jobs=search.n_jobs, prefer="threads")
    folds = min(search.guarded, MOST_GUARDED)
    return np.array(run(delayed(one)(k) for k in range(folds)))
