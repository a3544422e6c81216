"""From a grid to the best point: the best common penalty, a descent from there, and a guard.

Never worse than the grid on the folds: each stage starts at the best point so far and keeps it
unless the outer loss falls. The guard asks, for penalties that are many, how far they generalise:
the descent is repeated without each fold, and scored on that fold. It follows them as far as the
score is best, and not at all unless the gain is above its own standard error.

Losses that differ by rounding are equal, and of equal ones the largest penalties win
(:func:`select_strongest`): where the data can be interpolated, the loss falls to rounding over
decades of penalties, and the order of a sum must not decide between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from bilevel.sklearn.search.descent import Evaluation, OuterFunction, minimise_outer
from bilevel.sklearn.search.one_error import find_one_error
from bilevel.sklearn.search.options import SearchOptions
from bilevel.sklearn.search.scalar import find_vertex, minimise_scalar

SHRINKAGE = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # how much of the way from common to own penalties
MOST_GUARDED = 10  # folds that the guard leaves out, one after the other


@dataclass(frozen=True)
class SearchResult:
    """The result of :func:`tune_penalties`.

    ``theta [q]``, its :class:`Evaluation`; ``path [steps + 1, q]`` with ``values``, from the best
    grid point on; ``grid``, the outer loss at each grid point; ``shrinkage``, the part of the way
    from the common penalty that the guard allowed, and ``guard``, the loss it saw for each part;
    ``points [G, q]`` of the grid with ``losses [G, F]``; the ``search``, and its ``outer`` loss.
    ``allowed [A, q]``: the part of the path that the guard allows. Of a choice by a scorer
    ``scores`` like ``losses``, and which of the ``points`` was ``chosen``.
    """

    theta: np.ndarray
    evaluation: Evaluation
    path: np.ndarray
    values: np.ndarray
    grid: np.ndarray
    shrinkage: float
    guard: np.ndarray | None
    points: np.ndarray
    losses: np.ndarray
    search: SearchOptions
    outer: OuterFunction
    allowed: np.ndarray
    scores: np.ndarray | None = None
    chosen: int = -1


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


@dataclass
class Descent:
    """The way of one start: points and losses; ``common``, the last before the last stage."""

    path: list[np.ndarray]
    losses: list[float]
    common: int = 0
    curvature: float = 0.0


def tune_penalties(
    outer_of: Callable[[int | None], OuterFunction],
    grids: Sequence[np.ndarray],
    stages: list[np.ndarray],
    search: SearchOptions,
) -> SearchResult:
    """Tune ``theta`` for ``outer_of(None)``.

    Parameters
    ----------
    outer_of : of a fold: the problem without it; of ``None``: the problem.
    grids : ``[G, q]`` each; the best point of each is a start, and the best end is taken: with many
        penalties there are several minima.
    stages : the entries of ``theta`` that move together, ``[q]``, of one stage after the other;
        each descends from where the one before ended, the last under the guard.
    """
    outer = outer_of(None)
    # Evaluated first: the solvers then start where all coefficients are almost 0.
    strongest = outer(search.bounds[:, 1])
    worst, share = float(strongest.value), strongest.share
    resolution = search.resolution * abs(worst) if np.isfinite(worst) else 0.0
    parts = np.ones(1) if share is None else share[share > 0]
    tables, ways = _start_descents(outer, grids, parts, stages[0], search, resolution)
    if not ways:
        raise ValueError(
            "The cross-validation loss is not finite at any point of the grid of penalties. Are "
            "the columns of X of very different size? Scale them, or give larger alphas."
        )
    for way in ways:
        for i, stage in enumerate(stages):
            if i == len(stages) - 1:
                way.common = len(way.path) - 1
            _append_stage(way.path, way.losses, outer, stage, search, resolution, way.curvature)
    best_way = min(ways, key=lambda way: way.losses[-1])
    path, losses, shrinkage, seen = best_way.path, best_way.losses, 1.0, None
    if len(search.guarded):
        # How far from the common penalty to go, by folds that the descent did not see.
        common = path[best_way.common]
        points = _interpolate(common, path[-1])
        own = np.array([float(outer(theta).value) for theta in points])
        gains = _score_without_folds(outer_of, common, stages[-1], search, resolution)
        chosen = _choose_part(gains, own, resolution)
        seen, shrinkage = gains.mean(0), SHRINKAGE[chosen]
        if chosen == 0:
            other = min(ways, key=lambda way: way.losses[way.common])
            points[0], own[0] = other.path[other.common], other.losses[other.common]
        if shrinkage < 1:
            path.append(points[chosen])
            losses.append(own[chosen])
    allowed = list(path) if shrinkage == 1 else [*path[: best_way.common + 1], path[-1]]
    if search.one_error:
        path.append(find_one_error(outer, path[-1], search))
        losses.append(float(outer(path[-1]).value))
    theta = path[-1]
    at = getattr(outer, "evaluate_exactly", outer)(theta)
    steps, table = (np.array(path), np.array(losses)), np.concatenate(tables)
    values, points = (
        table @ (np.ones(1) if share is None else share[share > 0]),
        np.concatenate(grids),
    )
    return SearchResult(
        *(theta, at, *steps, values, shrinkage, seen, points, table),
        *(search, outer, np.array(allowed)),
    )


def _start_descents(
    outer: OuterFunction,
    grids: Sequence[np.ndarray],
    parts: np.ndarray,
    stage: np.ndarray,
    search: SearchOptions,
    resolution: float,
) -> tuple[list[np.ndarray], list[Descent]]:
    """Return the losses on each grid, and a descent from the best point of each."""
    tables: list[np.ndarray] = []
    ways: list[Descent] = []
    for grid in grids:
        table = evaluate_grid(outer, grid)
        values = table @ parts
        tables.append(table)
        best = select_strongest(grid, values, resolution, search.strength)
        if not np.isfinite(values[best]):
            continue
        if any(np.array_equal(grid[best], way.path[0]) for way in ways):
            continue
        ways.append(Descent([grid[best]], [values[best]]))
        shift = grid - grid[best]
        if stage.max() == 0 and np.allclose(shift, shift[:, :1], atol=1e-9):
            vertex, ways[-1].curvature = find_vertex(shift[:, 0], values, best)
            value = float(outer(grid[best] + vertex).value) if vertex else np.inf
            if value < values[best] * (1 + getattr(outer, "coarse", 0.0)):
                ways[-1].path.append(grid[best] + vertex)
                ways[-1].losses.append(value)
    return tables, ways


def evaluate_grid(outer: OuterFunction, grid: np.ndarray) -> np.ndarray:
    """Return the losses ``[G, F]`` of the folds at each point, infinite where not finite."""
    at_once = getattr(outer, "evaluate_grid", None)
    if at_once:
        table = at_once(grid)
    else:
        found = [outer(theta) for theta in grid]
        table = np.array(
            [at.losses if at.share is None else at.losses[at.share > 0] for at in found]
        )
    return np.where(np.isfinite(table), table, np.inf)


def _choose_part(losses: np.ndarray, own: np.ndarray, resolution: float) -> int:
    """Choose the part of the way by ``losses [folds, parts]`` on folds that were not seen.

    The least part whose gain is the largest, of those whose gain is above its standard error.
    """
    gain = losses[:, :1] - losses
    error, mean = gain.std(0, ddof=1) / np.sqrt(len(gain)), gain.mean(0)
    allowed = (own <= own[0] + resolution) & (mean > error + resolution)
    return int(np.argmax(np.where(allowed, mean, 0) >= np.max(mean * allowed) - resolution))


def _interpolate(start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """Return the points of the way at which the guard looks."""
    return [start + part * (end - start) for part in SHRINKAGE]


def _append_stage(
    path: list,
    losses: list,
    outer: OuterFunction,
    stage: np.ndarray,
    search: SearchOptions,
    resolution: float,
    curvature: float = 0.0,
) -> None:
    """Append the steps of one stage, up to the best of them, if they lead down.

    Penalties that share an entry move together: their ratios stay as they are.
    """
    start, size = path[-1], stage.max() + 1
    reach = np.tile([-np.inf, np.inf], (size, 1))
    np.maximum.at(reach[:, 0], stage, np.minimum(search.bounds[:, 0] - start, 0))
    np.minimum.at(reach[:, 1], stage, np.maximum(search.bounds[:, 1] - start, 0))
    options = {"max_iter": search.max_iter, "tol": search.tol, "least": resolution}
    if size == 1:
        options["tol"] *= search.sharpness
        found = minimise_scalar(outer, start, tuple(reach[0]), curvature=curvature, **options)
        steps, values = found[0][:, None], found[1]
    else:
        steps, values = minimise_outer(
            outer, np.zeros(size), reach, start=start, groups=stage, **options
        )
    losses[-1] = values[0]  # that of a grid is coarse
    thetas = start + steps[:, stage]
    last = select_strongest(thetas, values, resolution, search.strength)
    # Steps that lead up are trials of a search, not of the way.
    lower = values[: last + 1] <= np.minimum.accumulate(values[: last + 1])
    lower[0] = False
    path.extend(thetas[: last + 1][lower])
    losses.extend(values[: last + 1][lower])
    if last and not lower[last]:  # the strongest of equals
        path.append(thetas[last])
        losses.append(values[last])


def _score_without_folds(
    outer_of: Callable[[int | None], OuterFunction],
    common: np.ndarray,
    stage: np.ndarray,
    search: SearchOptions,
    resolution: float,
) -> np.ndarray:
    """Return the loss on each fold of penalties tuned without it, ``[folds, parts of the way]``."""

    def one(k: int) -> list[float]:
        outer = outer_of(k)
        path, losses = [common], [float(outer(common).value)]
        _append_stage(path, losses, outer, stage, search, resolution)
        return [float(outer(theta).losses[-1]) for theta in _interpolate(common, path[-1])]

    run = Parallel(n_jobs=search.n_jobs, prefer="threads")
    return np.array(run(delayed(one)(k) for k in search.guarded[:MOST_GUARDED]))
