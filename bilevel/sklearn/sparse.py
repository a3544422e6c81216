"""The search of models that leave columns out: grids of l1 and elastic-net penalties."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from bilevel.sklearn.base import HypergradEstimator
from bilevel.sklearn.choice import FitData, Placement, finish_fit
from bilevel.sklearn.losses import (
    ElasticNetLoss,
    FoldQuadratics,
    Matrix,
    SparseLoss,
    compute_column_squares,
)
from bilevel.sklearn.search import (
    ITERATED,
    ColumnPenalties,
    SearchResult,
    check_alphas,
    make_stages,
    share_in_groups,
    tune_penalties,
)

DECADES = 4  # of the grid of the lasso, down from the penalty that leaves no column

# Of the l1 part of the elastic net's grid, where both parts are in units of the data.
RATIOS = (0.01, 0.1, 0.5, 0.9, 0.999)
_ALIKE = 0.01  # the least curvature of a column beside the mean, where they are of one size


class L1Estimator(HypergradEstimator):
    """Base of the models of one penalty on ``|w|``, or on ``|w|`` and ``w^2`` in a fixed ratio."""

    _kinds = 1  # of penalties
    _ratio = 1.0  # of one kind: the part of |w|
    _points = 60  # of the grid
    _lowest = -16.0  # logarithm of the least penalty, in the unit of the data

    def _tune_sparse(
        self,
        data: FitData,
        rows: Matrix,
        problem_of: Callable[[int | None], FoldQuadratics],
        place: Placement,
    ) -> None:
        """Tune the penalties, and fit all rows with them."""
        loss = self._make_loss(problem_of(None))

        def outer_of(without: int | None) -> SparseLoss:
            return loss if without is None else self._make_loss(problem_of(without))

        shape: Any = rows.shape
        d = shape[1]
        penalties, weight = self._group_columns(d), data.weight
        columns = penalties.groups
        # Columns as they are; for penalties that are many, also in units of their deviation.
        scales = [np.ones(d)]
        squares = compute_column_squares(rows, weight, self.fit_intercept) / weight.sum()
        if columns.max() > 0:
            scales.append(np.sqrt(share_in_groups(squares, columns)))
        offset = np.tile(penalties.offset, self._kinds)
        units = [self._units(loss.problem, scale) for scale in scales]
        grids = [
            self._expand(self._grid(unit, squares / scale**2), scale) + offset
            for unit, scale in zip(units, scales, strict=True)
        ]
        grid = np.concatenate(grids)
        unit = self._expand(np.log(units[-1])[None], scales[-1])[0]
        more = np.log(10.0) * (count_decades(squares / scales[-1] ** 2) - DECADES)
        bounds = unit[:, None] + np.array([self._lowest - more, 3.0])
        if self._kinds == 2:
            bounds[d:, 1] += 10.0
        bounds[:, 0] = np.minimum(bounds[:, 0], np.min(grid, 0))
        bounds[:, 1] = np.maximum(bounds[:, 1], np.max(grid, 0))
        search = self._search(penalties.free(bounds), columns, data.splits)
        search = replace(search, resolution=ITERATED)
        with self._take_one_thread():
            found = tune_penalties(outer_of, grids, self._stages(columns), search)
        found = finish_fit(self, found, data, place)
        self._set_penalties(found, penalties)
        self.undetermined_ = loss.count_undetermined(found.theta)

    def _make_loss(self, problem: FoldQuadratics) -> SparseLoss:
        positive = getattr(self, "positive", False)
        return ElasticNetLoss(problem, self._kinds, ratio=self._ratio, positive=positive)

    def _units(self, problem: FoldQuadratics, scale: np.ndarray) -> np.ndarray:
        """Return the unit of each kind of penalty: the smallest l1 that leaves no column.

        For the second kind the mean curvature; both of columns divided by ``scale``.
        """
        used = map(int, np.flatnonzero(problem.share))
        slopes = [self._find_largest(problem.folds[k].cross / scale) for k in (*used, -1)]
        curvature = float(np.mean(problem.folds[-1].diagonal / scale**2))
        largest = float(np.max(slopes))
        return np.array([largest or 1.0, curvature if curvature > 0 else 1.0])[: self._kinds]

    def _find_largest(self, cross: np.ndarray) -> float:
        """Return the smallest penalty that leaves no column, of a slope at 0."""
        return float(np.max(np.abs(cross), initial=0)) / self._ratio

    def _expand(self, grid: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Repeat ``grid [G, kinds]`` for every column, ``[G, kinds d]``, in units of its scale."""
        power = np.arange(1, self._kinds + 1)[:, None]
        return (grid[:, :, None] + power * np.log(scale)).reshape(len(grid), -1)

    def _grid(self, units: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Return logarithms of the penalties to try, ``[G, kinds]``."""
        if self.alphas is not None:
            return np.log(check_alphas(self.alphas))[:, None]
        decades = count_decades(squares)
        points = np.logspace(0, -decades, round(self._points * decades / DECADES))
        return np.log(units[0] * points)[:, None]

    def _stages(self, columns: np.ndarray) -> list[np.ndarray]:
        return make_stages(columns, len(columns))

    def _set_penalties(self, found: SearchResult, penalties: ColumnPenalties) -> None:
        self._report(found, penalties.groups, lambda log: log[0] if penalties.single else log)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def count_decades(squares: np.ndarray) -> float:
    """Return how many decades the grid goes down: more where columns ``[d]`` differ in size.

    The largest alone joins at the first penalty of the grid; the others have theirs below.
    """
    return DECADES + float(np.log10(np.max(squares) / np.median(squares))) / 2


class NetEstimator(L1Estimator):
    """Base of the models of two penalties, on ``|w|`` and on ``w^2 / 2``, both tuned."""

    _kinds = 2

    def _grid(self, units: np.ndarray, squares: np.ndarray) -> np.ndarray:
        if self._kinds == 1:
            return super()._grid(units, squares)
        given = getattr(self, "l1_ratios", RATIOS)
        ratios = np.asarray(given, np.float64).ravel()
        if not ratios.size or np.any(ratios <= 0) or np.any(ratios >= 1):
            raise ValueError(f"l1_ratios must lie between 0 and 1, got {given!r}.")
        if self.alphas is not None:
            alphas = check_alphas(self.alphas)
            return np.log([(a * r, a * (1 - r)) for r in ratios for a in alphas])
        slope, curvature = units
        decades = count_decades(squares)
        parts = np.logspace(0, -decades, round(17 * decades / DECADES))
        pairs = [(a * slope, a * curvature * (1 - r) / r) for r in ratios[::-1] for a in parts]
        # Where columns differ in size a part of the mean curvature holds the small ones at 0: so
        # the path of the lasso too.
        if (least := float(np.min(squares) / np.mean(squares))) < _ALIKE:
            path = np.logspace(0, -decades, self._points)
            pairs += [(a * slope, 1e-3 * a * curvature * least) for a in path]
        return np.log(pairs)

    def _stages(self, columns: np.ndarray) -> list[np.ndarray]:
        each = super()._stages(columns)
        if self._kinds == 1:
            return each
        return [np.concatenate([groups, groups + groups.max() + 1]) for groups in each]

    def _set_penalties(self, found: SearchResult, penalties: ColumnPenalties) -> None:
        if self._kinds == 1:
            super()._set_penalties(found, penalties)
            return
        columns, single = penalties.groups, penalties.single
        d = len(columns)

        def parts(log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            l1, l2 = np.exp(log[:d]), np.exp(log[d:])
            return (l1[0], l2[0]) if single else (l1, l2)

        l1, l2 = parts(found.theta)
        self._report(found, np.arange(2 * d), lambda log: log_sum(*parts(log)), 2)
        grad = found.evaluation.grad.reshape(2, d)
        self.hypergradient_ = np.array([np.bincount(columns, g) for g in grad])
        both = np.asarray(l1 + l2)
        ratio = np.divide(l1, both, out=np.zeros_like(both), where=both > 0)
        self.l1_ratio_ = float(ratio) if single else ratio


def log_sum(l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Return the logarithm of both penalties together; of none, minus infinity."""
    with np.errstate(divide="ignore"):
        return np.log(l1 + l2)
