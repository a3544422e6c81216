"""Readers of a user's own files: csv and parquet tables, npz arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.datasets.archives import read_arrays

SUFFIXES = (".csv", ".npz", ".parquet")


@dataclass(frozen=True)
class Raw:
    """What a reader found; ``y`` is still as it was, since class labels may be text.

    ``X`` is ``[n, d]`` float64 without missing entries, ``row(i)`` says where row i is in the file.
    """

    X: np.ndarray
    y: np.ndarray
    names: list[str]
    source: str
    target: str = "y"
    row: Callable[[int], str] = "row {}".format
    test_rows: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def read(path: Path, target: str | None = None) -> Raw:
    """Read a table by the ending of its name.

    Raises
    ------
    ValueError : no such file, an unknown ending, or contents that are no table of numbers.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} does not end in one of {', '.join(SUFFIXES)}.")
    if not path.is_file():
        beside = f"the folder {path.parent} " + (
            "has no such file" if path.parent.is_dir() else "does not exist either"
        )
        raise ValueError(f"the data file {path} does not exist: {beside}.")
    if path.suffix == ".npz":
        if target is not None:
            raise ValueError(
                f"target={target!r}: an npz file has its target in y, not in a column."
            )
        return _read_npz(path)
    return _read_frame(path, target)


def numbers(values: np.ndarray, column: str, raw_source: str, row: Callable[[int], str]) -> Any:
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
                f"number ({len(wrong)} such entries). Encode categories as numbers, one column "
                "for each level, or leave the column out."
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


def _read_frame(path: Path, target: str | None) -> Raw:
    try:
        import pandas as pd
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs pandas: pip install 'bilevel[run]', or save it as .npz."
        ) from error
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pandas and pyarrow raise subclasses of these
        raise ValueError(f"{path} cannot be read as a {path.suffix[1:]} table: {error}") from error
    names = [str(name) for name in frame.columns]
    frame.columns = names
    if len(names) < 2 or frame.empty:
        raise ValueError(
            f"{path} has {len(names)} columns and {len(frame)} rows: expected at least one column "
            "of features beside the target, separated by commas, below a header line."
        )
    if all(_number(name) is not None for name in names):
        raise ValueError(
            f"{path}: the column names {', '.join(names[:3])} are all numbers, so the first line "
            "seems to hold data. Put a header line with names above it."
        )
    target = names[-1] if target is None else target
    if target not in names:
        raise ValueError(
            f"{path} has no column {target!r} for the target; its columns are {', '.join(names)}."
        )
    # A csv file counts its lines from 1, and the header is one of them.
    row = (lambda i: f"line {i + 2}") if path.suffix == ".csv" else "row {}".format
    features = [name for name in names if name != target]
    columns = [numbers(plain(frame[name]), name, str(path), row) for name in features]
    return Raw(np.column_stack(columns), plain(frame[target]), features, str(path), target, row)


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
    return Raw(np.column_stack(columns), y, names, str(path), "y", row, test_rows, notes)


def _numbered(count: int) -> list[str]:
    return [f"x{j}" for j in range(count)]
