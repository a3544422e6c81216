"""Base of the generalised linear models that tune their penalties by hypergradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse
from sklearn.utils._param_validation import StrOptions

from bilevel.sklearn.base import HypergradEstimator, to_float64
from bilevel.sklearn.choice import FitData, finish_fit
from bilevel.sklearn.confidence import measure_confidence, require_smallest_loss
from bilevel.sklearn.losses import (
    AloLoss,
    Folds,
    GlmFolds,
    GlmLoss,
    Link,
    compute_column_squares,
    make_fold_influence,
    make_folds,
    rotate_rows,
)
from bilevel.sklearn.search import (
    ITERATED,
    ColumnPenalties,
    SearchResult,
    check_alphas,
    make_log_bounds,
    make_stages,
    share_in_groups,
    tune_penalties,
)

_FEW = 500  # rows up to which sparse ones are rotated


class GlmEstimator(HypergradEstimator):
    """Base of the models of one linear score, or one per class, with penalties on squares."""

    # Powers of 10, ends of the grid, in units of the mean curvature of a column; the search ends at
    # the lower one.
    _decades = 3, -9
    _parameter_constraints: ClassVar[dict[str, list]] = {
        **HypergradEstimator._parameter_constraints,
        "confidence": ["boolean"],
        "cv": ["cv_object", StrOptions({"alo"})],
    }

    def __init__(
        self,
        penalty="global",
        *,
        alphas=None,
        fit_intercept=True,
        cv=None,
        guard=True,
        choose="smallest_loss",
        scoring=None,
        refit=True,
        confidence=False,
        max_iter=30,
        tol=1e-4,
        n_jobs=None,
        random_state=None,
    ):
        super().__init__(
            penalty,
            alphas=alphas,
            fit_intercept=fit_intercept,
            cv=cv,
            guard=guard,
            choose=choose,
            scoring=scoring,
            refit=refit,
            max_iter=max_iter,
            tol=tol,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        self.confidence = confidence

    def _validate_rows(self, X, y, sample_weight, **options) -> tuple[Any, np.ndarray, np.ndarray]:
        """Validate; leave-one-out needs a row beside each."""
        options["ensure_min_samples"] = 2 if isinstance(self.cv, str) else 1
        return self._validate(X, y, sample_weight, accept_sparse="csr", **options)

    def _tune_glm(
        self,
        data: FitData,
        target: np.ndarray,
        link: Link,
        *,
        mean: bool = False,
        unit: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        """Tune for ``target [n, T]``, and set what the search and the chosen fit say.

        A penalty of 1 in ``alpha_`` is ``unit`` in front of ``sum w^2 / 2``, beside the sum of the
        losses, or of their ``mean``, whatever the size of a fold. Losses are told times ``scale``.
        """
        X, weight, total = data.X, data.weight, data.weight.sum()
        unit = unit * total if mean else unit
        splits = data.splits
        shape: Any = X.shape
        d = shape[1]
        entries, _ = penalties = self._entries(d, target.shape[1] - link.plain)
        rows: Any = to_float64(X, weight if self.fit_intercept else None)
        back: Callable[[np.ndarray], np.ndarray] = np.asarray
        single = penalties.single
        if self.confidence:
            require_smallest_loss(self, single)
        small = not sparse.issparse(X) or splits is None or len(target) <= _FEW
        if single and d > len(target) and small:
            rows, back = rotate_rows(rows, weight, self.fit_intercept)

        def outer_of(without: int | None) -> GlmLoss | AloLoss:
            everything = np.ones((1, len(target)), bool)
            folds = Folds(everything, everything, np.ones(1))
            if splits is not None:
                train, held = splits
                folds = make_folds(train, held, weight, without)
            sides = GlmFolds(rows, target, weight, folds, self.fit_intercept, link.plain)
            if mean:
                sides.size[:] = total
            return GlmLoss(link, sides, self.tol) if splits else AloLoss(link, sides)

        start = np.broadcast_to(link.start(weight @ target / total), target.shape)
        curved = link.derive(start[:, None], target[:, None])[1]
        curvature = float(weight @ link.diagonal(curved)[:, 0] / total)
        grids, bounds = self._search_grids(data, penalties, curvature, unit)
        search = self._search(bounds, entries, splits)
        search = replace(search, resolution=ITERATED, sharpness=0.1)
        stages = make_stages(entries[: len(bounds)], len(bounds))
        found = tune_penalties(outer_of, grids, stages, search)
        middle = np.asarray(weight @ X).ravel() / total

        def place(_: np.ndarray, params: np.ndarray, __: np.ndarray) -> dict[str, Any]:
            coef, intercept = back(params[:-1]), params[-1]
            # Intercepts are of rows about their mean.
            return self._place(coef, intercept - self.fit_intercept * middle @ coef, X.dtype)

        found = scale_losses(finish_fit(self, found, data, place), scale)
        each, log_unit = (d, len(entries) // d), np.log(unit)
        free = entries[: len(found.theta)]
        self._report(found, free, lambda theta: self._view(theta - log_unit, each))
        if self.confidence:
            loss: Any = outer_of(None)
            look = make_fold_influence(loss, mean)
            self.confidence_ = measure_confidence(look, found, self.alpha_, data)

    def _search_grids(
        self, data: FitData, penalties: ColumnPenalties, curvature: float, unit: float
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the grids, of penalties flattened as the coefficients are, and the bounds.

        From the strongest on; one for columns as they are, and with many penalties one for columns
        of unit variance.
        """
        entries, offset = penalties
        squares = compute_column_squares(data.X, data.weight, self.fit_intercept) * curvature
        scales = [np.full(1 if penalties.single else len(entries), squares.mean())]
        if not penalties.single:
            each = np.repeat(squares, len(entries) // len(squares))
            scales.append(share_in_groups(each, entries))
        high, low = self._decades
        points = np.log(10.0) * np.arange(high, low - 1, -1)
        grids = [points[:, None] + np.log(scale) for scale in scales]
        if self.alphas is not None:
            alphas = np.log(check_alphas(self.alphas) * unit)[:, None]
            grids = [alphas + np.log(scale / scales[0]) for scale in scales]
        if not penalties.single:
            grids = [grid + offset for grid in grids]
        grid = np.concatenate(grids)
        bounds = make_log_bounds(scales[-1], grid.shape[1], low)
        bounds[:, 0] = np.minimum(bounds[:, 0], np.min(grid, 0))
        bounds[:, 1] = np.maximum(bounds[:, 1], np.max(grid, 0))
        return grids, bounds if penalties.single else penalties.free(bounds)

    def _entries(self, d: int, outputs: int) -> ColumnPenalties:
        """Return group and factor of each coefficient ``[d, T]``, flattened."""
        return ColumnPenalties(*(np.repeat(part, outputs) for part in self._group_columns(d)))

    def _view(self, theta: np.ndarray, shape: tuple[int, int]) -> float | np.ndarray:
        """Return entries of the coefficients as ``alpha_`` shows them."""
        return theta[0] if len(theta) == 1 else theta.reshape(shape)[:, 0]

    def _place(self, coef: np.ndarray, intercept: np.ndarray, dtype: DTypeLike) -> dict[str, Any]:
        """Return the attributes of the model with ``coef [d, T]``, ``intercept [T]``."""
        return self._place_linear(coef.T, intercept, True, dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def scale_losses(found: SearchResult, scale: float) -> SearchResult:
    """Return the result with its losses times ``scale``."""
    at = found.evaluation
    at = at._replace(value=scale * at.value, grad=scale * at.grad, losses=scale * at.losses)
    return replace(
        found,
        evaluation=at,
        values=scale * found.values,
        grid=scale * found.grid,
        losses=scale * found.losses,
        guard=None if found.guard is None else scale * found.guard,
    )
