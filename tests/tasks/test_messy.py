"""Tables as they come: read, typed, imputed and encoded by what the training rows say."""

import bz2
import gzip
import lzma
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from tasks.datasets import frames
from tasks.datasets.columns import Column, encode, fit_columns, recognise
from tasks.datasets.frames import read_frame

FRAME = pd.DataFrame({"a": [1.5, 2.5, -3.0], "b": ["x", "é", "z"], "y": [1, 2, 4]})


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    content = text.encode(encoding)
    packers: dict[str, Any] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, content)
    else:
        path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".csv.bz2", ".txt.xz", ".csv.zip"])
def test_one_table_by_any_delimiter_and_packing(
    tmp_path: Path, delimiter: str, ending: str
) -> None:
    path = write(tmp_path / f"t{ending}", FRAME.to_csv(sep=delimiter, index=False))
    pd.testing.assert_frame_equal(read_frame(path)[0], FRAME)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_one_table_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "t.csv", FRAME.to_csv(index=False), encoding)
    frame, notes = read_frame(path)
    pd.testing.assert_frame_equal(frame, FRAME)
    assert any("Latin-1" in note for note in notes) == (encoding == "latin-1")


def test_parquet_is_read(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read_frame(tmp_path / "t.parquet")[0], FRAME)


def test_excel_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openpyxl", reason="pip install -e '.[excel]'")
    days = pd.to_datetime(["2024-01-31", "2024-02-01", None])
    frame = FRAME.assign(day=days, member=[True, False, True], gap=[1.0, np.nan, 3.0])
    path = tmp_path / "t.xlsx"
    frame.to_excel(path, index=False)
    found: Any = read_frame(path)[0]
    pd.testing.assert_frame_equal(found, frame, check_dtype=False)
    columns = [recognise(found[name], "t.xlsx", str) for name in ("day", "member", "b")]
    kinds = [column.kind for column in columns if isinstance(column, Column)]
    assert kinds == ["date", "boolean", "category"]
    monkeypatch.setattr(frames, "memory", lambda: 8 * 1024)
    with pytest.raises(ValueError, match=r"cannot be read as a xlsx table: unpacked it has"):
        read_frame(path)


def test_without_openpyxl_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[excel\]'.*or save the sheet as"):
        read_frame(tmp_path / "t.xlsx")


def test_quoted_delimiters_count_for_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'a;b\n"x,1,2";3\n"y,1";4\n')
    assert list(read_frame(path)[0].columns) == ["a", "b"]


UNREADABLE = {
    "ragged": ("a,b\n1,2,3\n4,5,6\n", "more fields than the header"),
    "twice": ("a,a\n1,2\n", None),
    "quoted without end": ('a,b\n"1,2\n', "cannot be read as a csv table"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_text_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    text, words = UNREADABLE[name]
    path = write(tmp_path / "t.csv", text)
    if words is None:
        assert list(read_frame(path)[0].columns) == ["a", "a.1"]  # as pandas names them
        return
    with pytest.raises(ValueError, match=words):
        read_frame(path)


def test_packed_table_is_not_unpacked_beyond_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "memory", lambda: 8 * 2**16)
    for ending in (".csv.gz", ".csv.zip", ".csv"):
        path = write(tmp_path / f"t{ending}", "a,b\n" + "1,2\n" * 2**16)
        with pytest.raises(ValueError, match="unpacked it has more than"):
            read_frame(path)


def row(i: int) -> str:
    return f"line {i + 2}"


KINDS: list[tuple[list[Any], str, list[float] | None]] = [
    ([1, 2, 3], "number", [1, 2, 3]),
    ([1.5, None, 3], "number", [1.5, np.nan, 3]),
    (["1", " 2.5 ", "?"], "number", [1, 2.5, np.nan]),
    (["1,5", "1.234,5", "-3"], "number", [1.5, 1234.5, -3]),
    ([True, False, True], "boolean", [1, 0, 1]),
    ([True, None, False], "boolean", [1, np.nan, 0]),
    (["1970-01-02", "1970-01-03T12:00", None], "date", [1, 2.5, np.nan]),
    (["2.1.1970", "11.01.1970", "?"], "date", [1, 10, np.nan]),
    (["a", "b", None], "category", None),
    (["yes", "no", "yes"], "category", None),
    (["1970-01-02", "never", "1970-01-03"], "category", None),
]


@pytest.mark.parametrize(("values", "kind", "expected"), KINDS)
def test_kinds_are_recognised(values: list[Any], kind: str, expected: list[float] | None) -> None:
    series = pd.Series(values, name="c")
    column = recognise(series, "t.csv", row)
    assert isinstance(column, Column)
    assert column.kind == kind
    if expected is None:
        assert list(column.parse(series)) == ["missing" if x is None else x for x in values]
    else:
        np.testing.assert_array_equal(column.parse(series), expected)


def test_datetimes_of_parquet_are_dates_in_any_zone() -> None:
    plain = pd.Series(pd.to_datetime(["1970-01-02", None]), name="c")
    for series in (plain, plain.dt.tz_localize("UTC"), plain.astype("datetime64[s]")):
        column = recognise(series, "t", row)
        assert isinstance(column, Column)
        np.testing.assert_array_equal(column.parse(series), [1, np.nan])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, np.inf], "has 1 infinite values, the first in line 3"),
        ([*map(str, range(30)), "3o"], "line 32: '3o' is not a number"),
        ([1j, 2j], "holds complex128"),
    ],
)
def test_mistakes_are_named_with_their_line(values: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        recognise(pd.Series(values, name="c"), "t.csv", row)


@pytest.mark.parametrize(
    ("values", "words"),
    [([None, None], "it is empty"), ([f"name {i}" for i in range(90)], "names or sentences")],
)
def test_useless_columns_are_left_out_with_a_remark(values: list[Any], words: str) -> None:
    assert words in str(recognise(pd.Series(values, name="c"), "t.csv", row))


def messy(n: int = 120, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    city = rng.choice(np.array(["A", "B", "C"], object), n)
    city[::7] = None
    age = rng.normal(40, 10, n)
    age[::5] = np.nan
    member = rng.random(n) < 0.3
    day: Any = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D")
    y = np.nan_to_num(age, nan=40) + 9 * (city == "B") + 4 * member + rng.normal(size=n)
    frame = pd.DataFrame({"city": city, "age": age, "member": member, "day": day, "y": y})
    return frame.assign(day=day.strftime("%Y-%m-%d"))


def test_encoding_is_that_of_scikit_learn_fitted_on_the_training_rows_alone() -> None:
    frame = messy()
    train = np.arange(80)
    frame.loc[100, "city"] = "only in the test rows"
    columns, parsed = [], {}
    for name in ("city", "age", "member"):
        column = recognise(frame[name], "t", row)
        assert isinstance(column, Column)
        columns.append(column)
        parsed[name] = column.parse(frame[name])
    fitted, notes = fit_columns(columns, parsed, train)
    ours = encode(fitted, parsed)
    theirs: Any = ColumnTransformer(
        [
            ("city", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["city"]),
            ("age", SimpleImputer(strategy="median"), ["age"]),
            ("member", SimpleImputer(strategy="most_frequent"), ["member"]),
        ]
    )
    plain = frame[["city", "age", "member"]].assign(
        city=frame["city"].fillna("missing"), member=frame["member"].astype(float)
    )
    theirs.fit(plain.iloc[train])
    np.testing.assert_allclose(ours, theirs.transform(plain))
    assert [name for c in fitted for name in c.names][:4] == [
        "city=A",
        "city=B",
        "city=C",
        "city=missing",
    ]
    assert any("24 of 120 missing, filled with the median" in note for note in notes)


def test_rare_levels_share_a_column() -> None:
    values = np.array([f"l{i % 60 if i % 3 else 0}" for i in range(600)], object)
    column = recognise(pd.Series(values, name="c"), "t", row)
    assert isinstance(column, Column)
    (fitted,), _ = fit_columns([column], {"c": values}, np.arange(600))
    assert len(fitted.names) <= 40
    np.testing.assert_array_equal(fitted.encode(values).sum(1), 1)
