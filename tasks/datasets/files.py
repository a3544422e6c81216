"""Readers of a user's own files: tables, as text or parquet, and npz arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets.archives import read_arrays

TEXTS = (".csv", ".tsv", ".txt")
_PACKED = (".gz", ".bz2", ".xz", ".zip")
TABLES = (*TEXTS, *(text + end for text in TEXTS for end in _PACKED), ".parquet", ".xlsx", ".xls")
SUFFIXES = (*TABLES, ".npz")


@dataclass(frozen=True)
class Raw:
    """What a reader found; ``y`` is still as it was, since class labels may be text.

    ``X`` is ``[n, d]`` float64 without missing entries, or ``frame`` holds the columns as they
    were; ``row(i)`` says where row i is in the file.
    """

    y: np.ndarray
    names: list[str]
    source: str
    X: np.ndarray | None = None
    target: str = "y"
    row: Callable[[int], str] = "row {}".format
    test_rows: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    frame: Any = None
    groups: np.ndarray | None = None

    def matrix(self) -> np.ndarray:
        """Return the features as float64.

        Raises
        ------
        ValueError : entries of a frame that are no numbers, or are missing.
        """
        if self.X is not None:
            return self.X
        return np.column_stack(
            [numbers(plain(self.frame[n]), n, self.source, self.row) for n in self.names]
        )


@dataclass(frozen=True)
class Wanted:
    """Which columns of a table are what: the target, those left out or alone used, the groups."""

    target: str | None = None
    drop: Sequence[str] = ()
    columns: Sequence[str] | None = None
    groups: str | None = None

    def refuse(self, why: str) -> None:
        """Raise where something is wanted of data that have no columns by name.

        Raises
        ------
        ValueError : ``why``, after what was wanted.
        """
        for name in ("target", "drop", "columns", "groups"):
            if value := getattr(self, name):
                raise ValueError(f"{name}={value!r} {why}")


def read(path: Path, wanted: Wanted = Wanted()) -> Raw:
    """Read a table by the ending of its name.

    Raises
    ------
    ValueError : no such file, an unknown ending, or contents that are no table of numbers.
    """
    if not is_file_name(path.name):
        raise ValueError(f"{path} does not end in one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        beside = f"the folder {path.parent} " + (
            "has no such file" if path.parent.is_dir() else "does not exist either"
        )
        raise ValueError(f"the data file {path} does not exist: {beside}.")
    if path.suffix == ".npz":
        wanted.refuse("names a column: an npz file has its target in y, and no columns by name.")
        return _read_npz(path)
    return _read_frame(path, wanted)


def is_file_name(name: str) -> bool:
    """Whether a name ends as those of the files do that can be read."""
    return name.lower().endswith(SUFFIXES)


_ENCODE = "Encode categories as numbers, one column for each level, or leave the column out."


def numbers(
    values: np.ndarray,
    column: str,
    raw_source: str,
    row: Callable[[int], str],
    cure: str = _ENCODE,
) -> Any:
    """Return a column as float64, or refuse with the entry that is not a number.

    Raises
    ------
    ValueError : text, dates or complex entries; missing or infinite ones.
    """
    if values.dtype.kind in "biuf":
        out = values.astype(np.float64)
    elif values.dtype.kind in "OSU":
        out = np.array([_number(value) for value in values], dtype=object)
        wrong = [i for i, value in enumerate(out) if value is None]
        if wrong:
            raise ValueError(
                f"{raw_source}: column {column!r}, {row(wrong[0])}: {values[wrong[0]]!r} is not a "
                f"number ({len(wrong)} such entries). {cure}"
            )
        out = out.astype(np.float64)
    else:
        raise ValueError(
            f"{raw_source}: column {column!r} holds {values.dtype}, not numbers. Turn it into "
            "numbers (days since a date, real and imaginary part), or leave it out."
        )
    if (missing := np.flatnonzero(~np.isfinite(out))).size:
        raise ValueError(
            f"{raw_source}: column {column!r} has {missing.size} missing or infinite values, the "
            f"first in {row(int(missing[0]))}. Drop those rows, or fill them in "
            "(scikit-learn's SimpleImputer does)."
        )
    return out


def _number(value: Any) -> float | None:
    """Return NaN for a missing entry, None for anything that is not a number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _read_frame(path: Path, wanted: "Wanted") -> Raw:
    from tasks.datasets import frames  # pandas takes a second, and arrays need none

    frame, notes = frames.read_frame(path)
    return from_frame(frame, str(path), wanted, frames.numbered_rows(path), notes)


def from_frame(
    frame: Any, source: str, wanted: "Wanted", row: Callable[[int], str], notes: list[str]
) -> Raw:
    """Tell target, groups and features apart; the features are still as they were.

    Raises
    ------
    ValueError : no table, or a name that is no column.
    """
    from tasks.datasets import columns, frames

    names = list(frame.columns)
    if len(names) < 2 or frame.empty:
        raise ValueError(
            f"{source} has {len(names)} columns and {len(frame)} rows: expected at least one "
            "column of features beside the target, separated by commas, below a header line."
        )
    if all(_number(name) is not None for name in names):
        raise ValueError(
            f"{source}: the column names {', '.join(names[:3])} are all numbers, so the first line "
            "seems to hold data. Put a header line with names above it."
        )
    target = names[-1] if wanted.target is None else wanted.target
    if target not in names:
        raise ValueError(
            f"{source} has no column {target!r} for the target; its columns are {', '.join(names)}."
        )
    drop = list(wanted.drop)
    groups = None
    if wanted.groups is not None:
        if wanted.groups not in names or wanted.groups == target:
            raise ValueError(
                f"{source} has no column {wanted.groups!r} for the groups; its columns are "
                f"{', '.join(names)}."
            )
        groups = np.array([str(entry) for entry in frame[wanted.groups]])
        drop.append(wanted.groups)
    texts = columns.as_numbers(frame[target])
    features, said = frames.choose_columns(frame, target, drop, wanted.columns, source)
    return Raw(
        y=plain(frame[target]) if texts is None else texts,
        names=list(features.columns),
        source=source,
        target=target,
        row=row,
        notes=(*notes, *said),
        frame=features,
        groups=groups,
    )


def plain(series: Any) -> np.ndarray:
    """Return a column as NumPy has it; for pandas' own types, objects with None as missing."""
    if isinstance(series.dtype, np.dtype) and series.dtype != object:
        return series.to_numpy()
    values = series.to_numpy(dtype=object).copy()
    values[series.isna().to_numpy()] = None
    return values


def _read_npz(path: Path) -> Raw:
    try:
        arrays = {key.lower(): array for key, array in read_arrays(path).items()}
    except (ValueError, OSError, EOFError) as error:
        why = str(error).removeprefix(f"{path}").lstrip(": ")
        raise ValueError(
            f"{path} cannot be read as npz: {why} Save plain arrays with "
            "numpy.savez(path, X=X, y=y)."
        ) from error
    notes: tuple[str, ...] = ()
    if "x_num" in arrays:  # Ames: the numeric part of a table whose categories are codes
        arrays["x"], arrays["feature_names"] = arrays["x_num"], arrays["num_names"]
        notes = (f"{arrays['x_cat'].shape[1]} categorical columns left out",)
    test_rows = None
    if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
        first, total = len(arrays["x_train"]), len(arrays["x_train"]) + len(arrays["x_test"])
        test_rows = np.arange(first, total)
        for key in "xy":
            arrays[key] = np.concatenate([arrays[f"{key}_train"], arrays[f"{key}_test"]])
    if not {"x", "y"} <= set(arrays):
        raise ValueError(
            f"{path} holds {', '.join(arrays)}: expected X and y, or X_train, y_train, X_test and "
            "y_test."
        )
    X, y = arrays["x"], arrays["y"]
    if X.ndim < 2 or y.ndim != 1 or len(X) != len(y) or not X.size:
        raise ValueError(
            f"{path}: X is {list(X.shape)} and y is {list(y.shape)}: expected [rows, columns] and "
            "[rows], with as many rows in both."
        )
    X = X.reshape(len(X), -1)
    given = arrays.get("feature_names", np.array([]))
    names = [str(n) for n in given] if len(given) == X.shape[1] else _numbered(X.shape[1])
    row = "row {}".format
    columns = [numbers(X[:, j], names[j], str(path), row) for j in range(X.shape[1])]
    X = np.column_stack(columns)
    return Raw(y, names, str(path), X, test_rows=test_rows, notes=notes)


def _numbered(count: int) -> list[str]:
    return [f"x{j}" for j in range(count)]
