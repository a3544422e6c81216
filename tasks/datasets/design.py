"""From a data set to the arrays of a linear model's bilevel problem: one hold-out, or folds."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.datasets.columns import Column, encode, fit_columns
from tasks.datasets.features import Features, Scale
from tasks.datasets.splits import Split, deal, split
from tasks.datasets.tables import Kind, Table, load
from tasks.datasets.tabular import Tabular

Batch = tuple[np.ndarray, ...]
OUTER = ("holdout", "kfold")


@dataclass(frozen=True)
class Design:
    """Standardised columns, and which rows train and validate.

    Parameters
    ----------
    X : development rows (training, then validation), ``[n, d]``; with folds ``[n, F, d]``, in each
        fold centred and scaled by that fold's own training rows.
    y : ``[n]`` or ``[n, F]``, as in the table.
    train : ``[n]`` or ``[n, F]``, boolean; the other rows validate.
    development, test : ``(X [n, d], y [n])`` for a model with known penalties, in the columns that
        those penalties belong to.
    columns : the raw columns, with what the training rows said of them.
    """

    X: np.ndarray
    y: np.ndarray
    train: np.ndarray
    development: Batch
    test: Batch
    table: Table
    parts: Split
    features: Features
    columns: tuple[Column, ...]

    @property
    def folds(self) -> int | None:
        """Number of folds, ``None`` for a single hold-out."""
        return self.train.shape[1] if self.train.ndim == 2 else None

    def batches(self, y: np.ndarray) -> tuple[Batch, Batch]:
        """Return the batches of both levels for :mod:`tasks.parts.losses`, with targets ``y``."""
        train = self.train
        if self.folds is None:
            return (self.X[train], y[train]), (self.X[~train], y[~train])
        # Weights instead of subsets: all folds share one shape, and a batch drawn from all rows
        # is an unbiased one of each fold.
        inner, outer = (mask / mask.mean(0) for mask in (train, ~train))
        return (self.X, y, inner), (self.X, y, outer)

    def notes(self) -> dict[str, Any]:
        """Return what to record with a result."""
        parts = {name: len(getattr(self.parts, name)) for name in ("train", "validation", "test")}
        return {
            "source": self.table.source,
            "rows": parts,
            "split": self.parts.digest,
            "folds": self.folds,
            "columns": len(self.features.names),
            "column_names": list(self.features.names),
            "dropped_columns": list(self.features.dropped),
            "remarks": list(self.table.notes),
        }


def prepare(chosen: Tabular, kind: Kind) -> Design:
    """Load, split, expand and standardise; scales are learned without the rows that judge.

    A single hold-out learns them on its training rows, folds each on theirs. Which columns exist
    (after constants and duplicates are dropped) is a fact of the whole table, without its target.

    Raises
    ------
    ValueError : bad data, shares or folds; ``outer`` other than ``"holdout"`` or ``"kfold"``.
    """
    if chosen.outer not in OUTER:
        raise ValueError(f"outer={chosen.outer!r} must be one of {', '.join(OUTER)}.")
    wanted: dict[str, Any] = {"target": chosen.target, "drop": chosen.drop}
    wanted |= {"columns": chosen.columns, "groups": chosen.groups}
    table = load(chosen.data, chosen.root, kind=kind, numbers=False, **wanted)
    shares: dict[str, Any] = {"validation": chosen.validation, "test": chosen.test}
    parts = split(table, **shares, seed=chosen.seed, rows=chosen.rows)
    fitted = parts.train if chosen.outer == "holdout" else parts.development
    columns, X, remarks = _encoded(table, fitted)
    names = tuple(name for column in columns for name in column.names)
    inputs = tuple(column.name for column in columns for _ in column.names)
    features = Features.fit(X[fitted], names, chosen.degree, chosen.clip, X, inputs)
    Z, y = features.transform(X[parts.development]), table.y[parts.development]
    if chosen.outer == "holdout":
        rows, targets, train = Z, y, np.arange(len(y)) < len(parts.train)
    else:
        folds = chosen.folds
        train = _deal(table, parts, folds)[:, None] != np.arange(folds)
        rows = np.stack([Scale.fit(Z[used])(Z) for used in train.T], axis=1)
        targets = np.repeat(y[:, None], folds, axis=1)
    tested = features.transform(X[parts.test]), table.y[parts.test]
    table = replace(table, notes=(*table.notes, *remarks))
    return Design(rows, targets, train, (Z, y), tested, table, parts, features, columns)


def _encoded(table: Table, fitted: np.ndarray) -> tuple[tuple[Column, ...], np.ndarray, list[str]]:
    """Return raw columns, the numbers of all rows, and what was learned of the fitted ones."""
    if not table.columns:
        return tuple(Column(name, "number") for name in table.feature_names), table.X, []
    columns, remarks = fit_columns(table.columns, dict(table.parsed), fitted)
    return columns, encode(columns, dict(table.parsed)), remarks


def _deal(table: Table, parts: Split, folds: int) -> np.ndarray:
    """Return the fold of each development row."""
    rows = parts.development
    groups = None if table.groups is None else table.groups[rows]
    return deal(table.y[rows], folds, stratify=bool(table.classes), groups=groups)


def standardised(design: Design) -> np.ndarray:
    """Return targets centred on the training rows of each fold, all in one unit.

    Raises
    ------
    ValueError : the target is constant over the training rows.
    """
    centres = np.average(design.y, axis=0, weights=design.train)
    if not (unit := design.y[design.train].std()):
        raise ValueError(
            f"{design.table.source}: the target is the same in all training rows. Another seed, or "
            "more training rows, may mend it."
        )
    return (design.y - centres) / unit
