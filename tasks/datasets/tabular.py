"""Which table a task learns from, and what each of its rows and columns is used for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Tabular:
    """The settings that the tasks on tables share: one node ``task.table`` of a configuration.

    Parameters
    ----------
    data, root, target, drop, columns, groups : as for :func:`tasks.datasets.tables.load`.
    outer : ``"holdout"``, one validation set; or ``"kfold"``, the mean over ``folds`` folds of
        training and validation rows together, all moved in one vmapped call.
    degree : 1, the columns; 2, also their squares and products.
    clip : bound on standardised columns before they are multiplied, ``None`` for none; without it
        one far outlier among thousands of rows rules squares, products and stable step sizes.
    validation, test, rows, seed : as for :func:`tasks.datasets.splits.split`.
    """

    data: str = "diabetes"
    outer: str = "kfold"
    degree: int = 1
    clip: float | None = None
    folds: int = 5
    validation: float = 0.3
    test: float = 0.3
    rows: int | None = None
    target: str | None = None
    drop: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    groups: str | None = None
    root: str | None = None
    seed: int = 0

    def changed(self, table: "TableChoice") -> "Tabular":
        """Return these settings with those of ``table`` in their place.

        Parameters
        ----------
        table : the name of a data set; some of the settings; or all of them.

        Raises
        ------
        ValueError : there is no such setting.
        """
        if isinstance(table, Tabular):
            return table
        if isinstance(table, str):
            return replace(self, data=table)
        if unknown := [name for name in table if name not in NAMES]:
            raise ValueError(
                f"table has no setting {unknown[0]!r}. Available: {', '.join(sorted(NAMES))}."
            )
        return replace(self, **table)


NAMES = frozenset(field.name for field in fields(Tabular))
TableChoice = Tabular | Mapping[str, Any] | str
