"""What a column holds, and how it becomes numbers: statistics are learned from training rows.

A number stays, a boolean is 0 or 1, a date counts its days, a category has one column per level.
What is missing takes the median (of booleans: the most frequent) of the training rows; a missing
category is a level of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

Kind = Literal["number", "boolean", "date", "category"]
MISSING = "missing"
_OTHER = "other"
_MOST_LEVELS = 40
_MOSTLY = 0.9  # of the entries are numbers: the rest are mistakes, not levels
_UNSAID = {"", "?", "-", ".", "na", "n/a", "nan", "null", "none", "missing"}
_DATE = r"\d{4}-\d{1,2}-\d{1,2}([ T].*)?|\d{1,2}\.\d{1,2}\.\d{4}"
_COMMA = r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?"


@dataclass(frozen=True)
class Column:
    """A raw column, and what the training rows said of it.

    Parameters
    ----------
    name, kind : of the raw column.
    comma : whether its numbers have a decimal comma.
    fill : what stands for a missing number; in days since 1970 for a date.
    levels : of a category, those with a column of their own.
    other : whether one more column stands for the levels that are rare.
    """

    name: str
    kind: Kind
    comma: bool = False
    fill: float = 0.0
    levels: tuple[str, ...] = ()
    other: bool = False

    def parse(self, series: pd.Series) -> np.ndarray:
        """Return floats with NaN as missing; of a category, texts, ``"missing"`` among them.

        Raises
        ------
        ValueError : an entry that is no number, boolean or date where the column holds those.
        """
        if self.kind == "category":
            return series.astype(object).map(_text).to_numpy(object)
        if self.kind != "date" and series.dtype.kind in "biuf":
            return series.to_numpy(float, na_value=np.nan)
        parsed = self._from_texts(series)
        said = series.astype(object).map(_text).to_numpy(object) != MISSING
        if (wrong := np.flatnonzero(np.isnan(parsed) & said)).size:
            raise ValueError(
                f"{series.iloc[wrong[0]]!r} is no {self.kind} ({wrong.size} such entries)"
            )
        return parsed

    def _from_texts(self, series: pd.Series) -> np.ndarray:
        if self.kind == "date":
            return _days(series)
        entries = series.astype(object)
        if self.kind == "boolean":
            known = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0}
            lowered = entries.map(lambda x: x.strip().lower() if isinstance(x, str) else x)
            return lowered.map(known).to_numpy(float)
        return entries.map(lambda x: _number(x, comma=self.comma)).to_numpy(float)

    @property
    def names(self) -> list[str]:
        """Names of the columns that it becomes."""
        if self.kind != "category":
            return [self.name]
        return [f"{self.name}={level}" for level in (*self.levels, *([_OTHER] * self.other))]

    def encode(self, parsed: np.ndarray) -> np.ndarray:
        """Return ``[n, len(names)]``; a level that the training rows lack is no column."""
        if self.kind != "category":
            values = parsed.astype(float)
            return np.where(np.isnan(values), self.fill, values)[:, None]
        own = np.array([parsed == level for level in self.levels], float).reshape(-1, len(parsed)).T
        if not self.other:
            return own
        return np.column_stack([own, own.sum(1) == 0])


def recognise(series: pd.Series, source: str, row: Callable[[int], str]) -> Column | str:
    """Return what the column holds; a remark where it is of no use.

    Raises
    ------
    ValueError : entries of no known kind, infinite ones, or a few that are no number among many.
    """
    found = _recognise(series, source, row)
    if isinstance(found, Column) and found.kind == "number":
        bad = np.flatnonzero(np.isinf(found.parse(series)))
        if bad.size:
            raise ValueError(
                f"{source}: column {series.name!r} has {bad.size} infinite values, the first in "
                f"{row(int(bad[0]))}. Drop those rows, or make them missing."
            )
    return found


def _recognise(series: pd.Series, source: str, row: Callable[[int], str]) -> Column | str:
    name, dtype = str(series.name), series.dtype
    if series.isna().all():
        return f"column {name!r} left out: it is empty"
    if pd.api.types.is_bool_dtype(dtype) or {type(x) for x in series.dropna()} == {bool}:
        return Column(name, "boolean")
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return Column(name, "date")
    if pd.api.types.is_numeric_dtype(dtype) and dtype.kind != "c":
        return Column(name, "number")
    if dtype.kind in "cm":
        raise ValueError(
            f"{source}: column {name!r} holds {dtype}, not numbers. Turn it into numbers (seconds, "
            "real and imaginary part), or leave it out: drop=[COLUMN]."
        )
    return _recognise_text(series, source, row)


def as_numbers(series: pd.Series) -> np.ndarray | None:
    """Return texts as numbers, of a decimal comma too, where every one of them is a number."""
    if series.dtype.kind in "biufcmM" or pd.api.types.is_numeric_dtype(series.dtype):
        return None
    texts = series.astype(object).map(_text)
    said: Any = texts[texts != MISSING]
    for comma in (False, True):
        fits = (
            said.map(lambda x: _number(x) is not None) if not comma else said.str.fullmatch(_COMMA)
        )
        if len(said) and fits.all():
            return Column(str(series.name), "number", comma=comma).parse(series)
    return None


def _recognise_text(series: pd.Series, source: str, row: Callable[[int], str]) -> Column | str:
    name, texts = str(series.name), series.astype(object).map(_text).to_numpy(object)
    given = np.flatnonzero(texts != MISSING)
    said = pd.Series(texts[given], dtype=object)
    if not len(said):
        return f"column {name!r} left out: it is empty"
    if said.str.fullmatch(_DATE).all() and not np.isnan(_days(said)).any():
        return Column(name, "date")
    numeric = np.array([_number(text) is not None for text in said])
    if numeric.all():
        return Column(name, "number")
    if said.str.fullmatch(_COMMA).all():
        return Column(name, "number", comma=True)
    if numeric.mean() >= _MOSTLY:
        wrong = given[np.flatnonzero(~numeric)]
        raise ValueError(
            f"{source}: column {name!r}, {row(int(wrong[0]))}: {texts[wrong[0]]!r} is not a "
            f"number ({len(wrong)} such entries), and the others are. Mend them, leave them empty, "
            "or leave the column out: drop=[COLUMN]."
        )
    if said.nunique() > max(_MOST_LEVELS, len(said) // 2):
        return (
            f"column {name!r} left out: {said.nunique()} different texts in {len(said)} rows are "
            "names or sentences, not levels"
        )
    return Column(name, "category")


def fit_columns(
    columns: Sequence[Column], parsed: dict[str, np.ndarray], rows: np.ndarray
) -> tuple[tuple[Column, ...], list[str]]:
    """Learn fills and levels from some rows by scikit-learn's transformers; with remarks."""
    fitted, notes = [], []
    for column in columns:
        values = parsed[column.name]
        if column.kind == "category":
            encoder = OneHotEncoder(max_categories=_MOST_LEVELS)
            encoder.fit(values[rows][:, None])
            found: list[Any] = list(encoder.infrequent_categories_ or [None])
            rare = set() if found[0] is None else set(found[0])
            levels = tuple(str(x) for x in encoder.categories_[0] if x not in rare)
            fitted.append(replace(column, levels=levels, other=bool(rare)))
            more = f" and one for {len(rare)} rare ones" if rare else ""
            notes.append(
                f"column {column.name!r}: one column for each of {len(levels)} levels{more}"
            )
            continue
        strategy = "most_frequent" if column.kind == "boolean" else "median"
        known = values[rows][~np.isnan(values[rows])]
        imputer: Any = SimpleImputer(strategy=strategy)
        fill = float(imputer.fit(known[:, None]).statistics_[0]) if known.size else 0.0
        fitted.append(replace(column, fill=fill))
        if missing := int(np.isnan(values).sum()):
            notes.append(
                f"column {column.name!r}: {missing} of {len(values)} missing, filled with the "
                f"{strategy.replace('_', ' ')} of the training rows, {fill:g}"
            )
        if column.kind == "date":
            notes.append(f"column {column.name!r}: a date, in days since 1970")
        if column.comma:
            notes.append(f"column {column.name!r}: numbers with a decimal comma")
    return tuple(fitted), notes


def encode(columns: Sequence[Column], parsed: dict[str, np.ndarray]) -> np.ndarray:
    """Return the matrix of all columns, ``[n, d]``."""
    return np.column_stack([column.encode(parsed[column.name]) for column in columns])


def _text(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return MISSING
    text = str(value).strip()
    return MISSING if text.lower() in _UNSAID else text


def _number(value: Any, *, comma: bool = False) -> float | None:
    text = _text(value)
    if text == MISSING:
        return np.nan
    try:
        return float(text.replace(".", "").replace(",", ".") if comma else text)
    except ValueError:
        return None


def _days(series: pd.Series) -> np.ndarray:
    """Return days since 1970, NaN where there is no date."""
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        moments = series
    else:
        texts = series.astype(object).map(_text)
        day_first = texts.str.contains(".", regex=False) & ~texts.str.contains("-", regex=False)
        iso = pd.to_datetime(texts.where(~day_first), format="ISO8601", errors="coerce", utc=True)
        other = pd.to_datetime(texts.where(day_first), format="%d.%m.%Y", errors="coerce", utc=True)
        moments = iso.fillna(other)
    stamps = pd.DatetimeIndex(moments)
    stamps = stamps.tz_convert("UTC").tz_localize(None) if stamps.tz is not None else stamps
    return ((stamps - pd.Timestamp(0)) / pd.Timedelta(days=1)).to_numpy(float)
