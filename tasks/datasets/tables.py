"""Data sets by name or by path: numbers in, a checked table out."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn.datasets

from tasks.datasets import files, openml
from tasks.datasets.columns import Column, recognise
from tasks.datasets.targets import drop_unlabelled, read_classes, read_quantity, remark_counts

Kind = Literal["regression", "classification"]

BUNDLED: dict[str, Kind] = {
    "diabetes": "regression",
    "breast_cancer": "classification",
    "digits": "classification",
    "iris": "classification",
    "wine": "classification",
}
SHARED: dict[str, Kind] = {
    "ames_housing": "regression",
    "california_housing": "regression",
    "uci_energy": "regression",
    "uci_kin8nm": "regression",
    "uci_naval": "regression",
    "uci_power": "regression",
    "uci_yacht": "regression",
    "colon_discrete": "classification",
    "ijcnn1": "classification",
    "khan_srbct": "classification",
    "leukemia_allaml": "classification",
    "madelon": "classification",
    "mnist": "classification",
}
ROOT = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Table:
    """A data set that can be learned from: finite numbers, a target that varies.

    Parameters
    ----------
    X : ``[n, d]`` float64.
    y : ``[n]``; float64 in the target's own units, or int32 class numbers ``0 .. C-1``.
    feature_names : d names.
    classes : the labels that the class numbers stand for; empty for regression.
    source : where the numbers came from.
    test_rows : rows that the source itself sets aside for testing, or ``None``.
    notes : what was left out on the way, if anything.
    columns, parsed : of a table that was read as it is: what its columns hold, and their entries
        by name, for :func:`tasks.datasets.columns.fit_columns`; then ``X`` has no columns.
    groups : rows of one group are kept together, ``[n]``, or ``None``.
    target : what ``y`` is called.
    labels : the classes as they are in the table: numbers, booleans or texts.
    """

    X: np.ndarray
    y: np.ndarray
    feature_names: tuple[str, ...]
    classes: tuple[str, ...]
    source: str
    test_rows: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    parsed: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: np.ndarray | None = None
    target: str = "y"
    labels: tuple[Any, ...] = ()


def load(
    data: str,
    root: str | None = None,
    *,
    kind: Kind = "regression",
    target: str | None = None,
    drop: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    groups: str | None = None,
    numbers: bool = True,
) -> Table:
    """Read a data set for regression or classification.

    Parameters
    ----------
    data : a set bundled with scikit-learn; one of the npz sets in ``root``; ``openml:NAME``,
        ``openml:NAME:VERSION`` or ``openml:ID`` where there is a network; or the path of your own
        table (``.csv``, ``.tsv``, ``.txt`` with a header line, compressed or not, ``.parquet``,
        ``.xlsx``), or ``.npz`` (arrays ``X`` and ``y``, or ``X_train``, ``y_train``, ``X_test``,
        ``y_test``; optionally ``feature_names``).
    root : folder of the npz sets; by default ``../shared/data`` beside the project.
    kind : what ``y`` is; class labels may be text.
    target : the column of a table to predict, by default the last.
    drop, columns : columns of a table to leave out; those to use, by default all.
    groups : the column of a table whose equal entries keep rows in one part and one fold.
    numbers : refuse a table with entries that are no numbers or are missing; otherwise they are
        encoded by whoever knows the training rows.

    Raises
    ------
    ValueError : an unknown name (the text lists what was tried), a file that is absent or cannot be
        read, entries that are no numbers or are missing, a target that is constant or of the other
        kind.

    Examples
    --------
    >>> from tasks.datasets.tables import load
    >>> load("diabetes").X.shape
    (442, 10)
    """
    wanted = files.Wanted(target, drop or (), columns, groups)
    if data.startswith(openml.PREFIX):
        wanted.refuse(_NO_COLUMNS.format(data=data))
        return checked(openml.read(data, numbers=numbers), kind, numbers=numbers)
    if files.is_file_name(data) or "/" in data or "\\" in data:
        return checked(files.read(Path(data), wanted), kind, numbers=numbers)
    wanted.refuse(_NO_COLUMNS.format(data=data))
    if (own := (BUNDLED | SHARED).get(data, kind)) != kind:
        raise ValueError(f"{data!r} is a {own} set, but {kind} was asked for: {_names(kind)}.")
    if data in BUNDLED:
        bunch = sklearn.datasets.__dict__[f"load_{data}"]()
        names = [str(name) for name in bunch.feature_names]
        labels = np.asarray(bunch.target_names)[bunch.target] if "target_names" in bunch else None
        y = bunch.target if labels is None else labels
        return checked(files.Raw(y, names, f"scikit-learn {data}", bunch.data), kind)
    folder = Path(root) if root is not None else ROOT
    if data in SHARED and (path := folder / f"{data}.npz").is_file():
        return checked(replace(files.read(path), source=path.name), kind)
    raise ValueError(_unknown(data, folder, kind))


_NO_COLUMNS = (
    "names a column of a csv or parquet file, but {data!r} is a named data set with a target of "
    "its own. Leave it out."
)


def _names(kind: Kind) -> str:
    bundled, shared = (
        ", ".join(name for name, own in group.items() if own == kind) for group in (BUNDLED, SHARED)
    )
    return f"bundled with scikit-learn are {bundled}; as npz files there may be {shared}"


def _unknown(data: str, folder: Path, kind: Kind) -> str:
    if data in SHARED:
        there = "has no such file" if folder.is_dir() else "does not exist"
        return (
            f"data set {data!r} is not here: the folder {folder} {there}. Pass root=FOLDER with "
            f"{data}.npz in it, the path of a file of your own, openml:NAME where there is a "
            f"network, or a bundled set: {', '.join(BUNDLED)}."
        )
    close = difflib.get_close_matches(data, [*BUNDLED, *SHARED], n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    absent = "" if folder.is_dir() else f" (the folder {folder} is absent)"
    return (
        f"unknown data set {data!r}. {hint}For {kind}, {_names(kind)}{absent}. From OpenML it is "
        f"openml:{data}; a file of your own is given by its path, ending in "
        f"{', '.join(files.SUFFIXES)}."
    )


def checked(raw: files.Raw, kind: Kind, *, numbers: bool = True) -> Table:
    """Return the table of what a reader found, or say why nothing can be learned from it."""
    raw = drop_unlabelled(raw)
    if kind == "regression":
        y, classes, labels = read_quantity(raw), (), ()
        raw = replace(raw, notes=(*raw.notes, *remark_counts(raw.target, y)))
    else:
        y, classes, labels = read_classes(raw)
    found = Table(
        np.empty((len(y), 0)),
        y,
        tuple(raw.names),
        classes,
        raw.source,
        raw.test_rows,
        raw.notes,
        groups=raw.groups,
        target=raw.target,
        labels=labels,
    )
    if raw.frame is None or numbers:
        return replace(found, X=raw.matrix())
    columns, parsed, notes = [], {}, list(raw.notes)
    for name in raw.names:
        column = recognise(raw.frame[name], raw.source, raw.row)
        if isinstance(column, str):
            notes.append(column)
        else:
            columns.append(column)
            parsed[name] = column.parse(raw.frame[name])
    if not columns:
        raise ValueError(f"{raw.source}: no column of features is left: {'; '.join(notes)}.")
    names = tuple(column.name for column in columns)
    about = {"columns": tuple(columns), "parsed": parsed, "notes": tuple(notes)}
    return replace(found, feature_names=names, **about)
