"""From a grid to the best point: the best common penalty, a descent from there, and a guard.

Never worse than the grid on the folds: each stage starts at the best point so far and keeps it
unless the outer loss falls. The guard asks, for penalties that are many, how far they generalise:
the descent is repeated without each fold, and scored on that fold. It follows them as far as the
score is best, and not at all unless the gain is above its own standard error.

Losses that differ by rounding are equal, and of equal ones the largest penalties win
(:func:`select_strongest`): where the data can be interpolated, the loss falls to rounding over
decades of penalties, and the order of a sum must not decide between them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from bilevel.sklearn.search.descent import Evaluation, OuterLoss, minimise_outer, to_host

SHRINKAGE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # how much of the way from common to own penalties
MOST_GUARDED = 10  # folds that the guard leaves out, one after the other
# Of the loss of the strongest penalties, which leave the intercept alone: for squared errors the
# variance of the target. Losses that differ by less differ by rounding: they are differences of
# sums of that size over up to thousands of terms, each rounded to 2e-16.
RESOLUTION = 1e-12


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search for penalties.

    ``bounds [q, 2]`` of ``theta``; at most ``max_iter`` steps a stage, or until one gains less than
    ``tol``; ``n_jobs`` threads and ``guarded`` folds of the guard, 0 for none. ``strength [q]``:
    how strongly each entry of ``theta`` regularises, by default all alike.
    """

    bounds: np.ndarray
    max_iter: int
    tol: float
    n_jobs: int | None = None
    guarded: int = 0
    strength: np.ndarray | None = None


@dataclass(frozen=True)
class SearchResult:
    """The result of :func:`tune_penalties`.

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


def select_strongest(
    thetas: np.ndarray, values: np.ndarray, resolution: float, strength: np.ndarray | None = None
) -> int:
    """Select the strongest penalties among those within ``resolution`` of the smallest value.

    ``thetas [N, q]`` are logarithms of penalties, ``values [N]`` their losses; the strongest has
    the largest ``theta @ strength``, the first of them if several have. Returns its index.
    """
    equal = np.flatnonzero(values <= np.min(values) + resolution)
    total = np.sum(thetas if strength is None else thetas * strength, axis=1)
    return int(equal[np.argmax(total[equal])])


def tune_penalties(
    outer_of: Callable[[int | None], OuterLoss],
    grid: np.ndarray,
    stages: list[np.ndarray],
    search: SearchOptions,
) -> SearchResult:
    """Tune ``theta`` for ``outer_of(None)``, in float64.

    Parameters
    ----------
    outer_of : of a fold: the problem without it; of ``None``: the problem.
    grid : ``[G, q]``, constant on the groups of the first stage.
    stages : the free entry that each entry of ``theta`` uses, ``[q]``, of one stage after the
        other; each descends from where the one before ended, the last under the guard.
    """
    with jax.enable_x64(True):
        return _tune(outer_of, grid, stages, search)


def _tune(
    outer_of: Callable[[int | None], OuterLoss],
    grid: np.ndarray,
    stages: list[np.ndarray],
    search: SearchOptions,
) -> SearchResult:
    outer = outer_of(None)
    # Evaluated first: the solvers then start where all coefficients are almost 0.
    worst = float(outer(search.bounds[:, 1]).value)
    resolution = RESOLUTION * worst if np.isfinite(worst) else 0.0
    values = np.array([float(outer(theta).value) for theta in grid])
    values = np.where(np.isfinite(values), values, np.inf)
    best = select_strongest(grid, values, resolution, search.strength)
    if not np.isfinite(values[best]):
        raise ValueError(
            "The cross-validation loss is not finite at any point of the grid of penalties. Are "
            "the columns of X of very different size? Scale them, or give larger alphas."
        )
    path, losses = [grid[best]], [values[best]]
    for stage in stages[:1] if search.guarded else stages:
        _append_stage(path, losses, outer, stage, search, resolution)
    shrinkage: float = 1.0
    seen: np.ndarray | None = None
    if search.guarded:
        common = path[-1]
        for stage in stages[1:]:
            _append_stage(path, losses, outer, stage, search, resolution)
        # How far from the common penalty to go, by folds that the descent did not see.
        way = _interpolate(common, path[-1])
        own = np.array([float(outer(theta).value) for theta in way])
        seen = _score_without_folds(outer_of, common, stages[1:], search, resolution)
        gain = seen[:, :1] - seen
        error = gain.std(0, ddof=1) / np.sqrt(len(gain))
        mean = gain.mean(0)
        allowed = (own <= own[0] + resolution) & (mean > error + resolution)
        # The least of the way whose gain is the largest, to rounding.
        chosen = int(np.argmax(np.where(allowed, mean, 0) >= np.max(mean * allowed) - resolution))
        seen = seen.mean(0)
        shrinkage = SHRINKAGE[chosen]
        if shrinkage < 1:
            path.append(way[chosen])
            losses.append(own[chosen])
    theta = path[-1]
    at = to_host(outer(theta))
    return SearchResult(theta, at, np.array(path), np.array(losses), values, shrinkage, seen)


def _interpolate(start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Return the points of the way at which the guard looks."""
    return [start + part * (end - start) for part in SHRINKAGE]


def _append_stage(
    path: list,
    losses: list,
    outer: OuterLoss,
    stage: np.ndarray,
    search: SearchOptions,
    resolution: float,
) -> None:
    """Append the steps of one stage, up to the best of them, if they lead down."""
    phi, bounds = np.zeros(stage.max() + 1), np.zeros((stage.max() + 1, 2))
    phi[stage], bounds[stage] = path[-1], search.bounds
    steps, values = minimise_outer(
        outer, phi, stage, bounds, max_iter=search.max_iter, tol=search.tol, least=resolution
    )
    thetas, values = steps[:, stage], np.append(losses[-1], values[1:])
    last = select_strongest(thetas, values, resolution, search.strength)
    path.extend(thetas[1 : last + 1])
    losses.extend(values[1 : last + 1])


def _score_without_folds(
    outer_of: Callable[[int | None], OuterLoss],
    common: np.ndarray,
    stages: list,
    search: SearchOptions,
    resolution: float,
) -> np.ndarray:
    """Return the loss on each fold of penalties tuned without it, ``[folds, parts of the way]``."""

    def one(k: int) -> list[float]:
        with jax.enable_x64(True):  # holds in one thread
            outer = outer_of(k)
            path, losses = [common], [float(outer(common).value)]
            for stage in stages:
                _append_stage(path, losses, outer, stage, search, resolution)
            return [float(outer(theta).losses[-1]) for theta in _interpolate(common, path[-1])]

    run = Parallel(n_jobs=search.n_jobs, prefer="threads")
    folds = min(search.guarded, MOST_GUARDED)
    return np.array(run(delayed(one)(k) for k in range(folds)))
