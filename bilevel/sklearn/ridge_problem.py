"""Outer losses of ridge, of one penalty and of many, with folds and without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bilevel.sklearn.losses import (
    SQUARED,
    CriterionLoss,
    CriterionPath,
    CriterionRows,
    GlmFolds,
    GlmLoss,
    Matrix,
    ProductPath,
    RidgeLoss,
    RidgePath,
    RowInfluence,
    compute_fold_sums,
    compute_group_sums,
    label_groups,
    make_criterion_influence,
    make_criterion_rows,
    make_fold_influence,
    make_folds,
    make_product_criterion,
    make_product_path,
    rotate_rows,
)
from bilevel.sklearn.search import OuterFunction


@dataclass(frozen=True)
class RidgeProblem:
    """The data of one fit: ``splits``, or the name of a ``criterion`` that needs none."""

    rows: Matrix
    targets: np.ndarray
    weight: np.ndarray
    splits: tuple[np.ndarray, np.ndarray] | None
    centred: bool
    criterion: str
    noise_variance: float | None

    def make_path(
        self, rows: Matrix
    ) -> tuple[RidgePath | ProductPath | CriterionPath, Callable[[np.ndarray], np.ndarray]]:
        """Return the outer loss of one penalty, and the way back to the columns of ``rows``."""

        folds = None if self.splits is None else make_folds(*self.splits, self.weight)
        shared = rows, self.targets, self.weight
        back: Callable[[np.ndarray], np.ndarray] = np.asarray
        shape: Any = rows.shape
        if shape[1] > shape[0]:
            if folds is None:
                noise = float(self.noise_variance or 0)
                found = make_product_criterion(self.criterion, *shared, self.centred, noise)
            else:
                found = make_product_path(*shared, folds, self.centred)
            if found is not None:
                return found
            # One penalty is the same in every orthonormal basis.
            rows, back = rotate_rows(rows, self.weight, self.centred)
        if folds is None:
            return CriterionPath(self.criterion, self._criterion_rows(rows)), back
        return RidgePath(rows, self.targets, self.weight, folds, self.centred), back

    def make_influence(self) -> RowInfluence:
        """Return the influence of the rows on the outer loss of one penalty."""
        if self.splits is None:
            path: Any = self.make_path(self.rows)[0]
            return make_criterion_influence(path)
        rows: Any = self.rows
        shape: Any = rows.shape
        if shape[1] > shape[0]:
            rows, _ = rotate_rows(rows, self.weight, self.centred)
        folds = make_folds(*self.splits, self.weight)
        sides = GlmFolds(rows, self.targets, self.weight, folds, self.centred)
        return make_fold_influence(GlmLoss(SQUARED, sides))

    def make_loss(self) -> Callable[[int | None], OuterFunction]:
        """Return the outer loss of penalties per column, of the problem without a fold."""
        if self.splits is None:
            loss = CriterionLoss(self.criterion, self._criterion_rows(self.rows))
            return lambda _: loss
        train, held = self.splits
        parts = compute_group_sums(
            self.rows, self.targets, self.weight, label_groups(train, held)[0], self.centred
        )

        def loss_of(without: int | None) -> RidgeLoss:
            folds = make_folds(train, held, self.weight, without)
            return RidgeLoss(compute_fold_sums(parts, folds)[0])

        return loss_of

    def _criterion_rows(self, rows: Any) -> CriterionRows:
        noise = float(self.noise_variance or 0)
        return make_criterion_rows(rows, self.targets, self.weight, self.centred, noise)
