"""Data sets by name and by path, and what is said when they cannot be used."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets
from sklearn.utils import Bunch

from tasks.datasets import tables
from tasks.datasets.tables import BUNDLED, SHARED, load

HEADER = "age,weight,label\n"
NUMBERS = HEADER + "1,2.5,0\n3,4.5,1\n5,6.5,0\n7,8.5,1\n9,1.5,0\n2,3.5,1\n"


@pytest.fixture
def write(tmp_path: Path):
    """Write a file below the test's folder, give its path."""

    def make(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_are_those_of_scikit_learn(name: str) -> None:
    bunch = getattr(datasets, f"load_{name}")()
    table = load(name, kind=BUNDLED[name])
    np.testing.assert_array_equal(table.X, bunch.data)
    assert table.feature_names == tuple(map(str, bunch.feature_names))
    assert table.test_rows is None
    if BUNDLED[name] == "classification":
        labels = np.array(table.classes)[table.y]
        np.testing.assert_array_equal(labels, bunch.target_names[bunch.target].astype(str))
    else:
        np.testing.assert_array_equal(table.y, bunch.target)


@pytest.mark.parametrize("name", [n for n in SHARED if n != "mnist"])
def test_shared_sets_load(name: str, shared_data: Path) -> None:
    table = load(name, str(shared_data), kind=SHARED[name])
    with np.load(shared_data / f"{name}.npz") as archive:
        keys = ("X_train", "X_test") if "X_train" in archive else ("X_num",)
        parts = [archive[k] for k in (keys if keys[0] in archive else ("X",))]
    np.testing.assert_array_equal(table.X, np.concatenate(parts))
    assert len(table.y) == len(table.X)
    assert len(table.feature_names) == table.X.shape[1]
    if len(parts) == 2:
        np.testing.assert_array_equal(table.X[table.test_rows], parts[1])
    if name == "ames_housing":
        assert table.notes == ("40 categorical columns left out",)


def test_one_table_in_three_formats(tmp_path: Path) -> None:
    frame = pd.DataFrame({"y": [1.0, 2.0, 4.0], "a": [1, 0, 2], "b c": [0.5, 1.5, -1.0]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    X, names = frame[["a", "b c"]].to_numpy(), np.array(["a", "b c"])
    np.savez(tmp_path / "t.npz", X=X, y=frame["y"], feature_names=names)
    for name in ("t.csv", "t.parquet", "t.npz"):
        target = None if name == "t.npz" else "y"
        table = load(str(tmp_path / name), target=target)
        np.testing.assert_array_equal(table.X, X)
        np.testing.assert_array_equal(table.y, frame["y"])
        assert table.feature_names == ("a", "b c")
        assert table.source == str(tmp_path / name)


def test_target_is_the_last_column_unless_named(write) -> None:
    path = write("t.csv", NUMBERS)
    assert load(path).feature_names == ("age", "weight")
    table = load(path, target="age")
    assert table.feature_names == ("weight", "label")
    np.testing.assert_array_equal(table.y, [1, 3, 5, 7, 9, 2])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_may_be_text(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(6), "kind": ["no", "yes", "no", "yes", "yes", "no"]})
    path = tmp_path / f"t.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    table = load(str(path), kind="classification")
    assert table.classes == ("no", "yes")
    np.testing.assert_array_equal(table.y, [0, 1, 0, 1, 1, 0])


def test_own_test_rows_and_images(tmp_path: Path) -> None:
    train, test = np.arange(24).reshape(4, 2, 3), np.arange(12).reshape(2, 2, 3)
    path = tmp_path / "t.npz"
    np.savez(path, x_train=train, y_train=[-1, 1, -1, 1], x_test=test, y_test=[1, -1])
    table = load(str(path), kind="classification")
    np.testing.assert_array_equal(table.X, np.concatenate([train, test]).reshape(6, 6))
    np.testing.assert_array_equal(table.test_rows, [4, 5])
    assert table.classes == ("-1", "1")


REGRESSION = [
    ("bmi,y\n1,2\nabc,4\n3,5\n", r"column 'bmi', line 3: 'abc' is not a number \(1 such entries\)"),
    ("bmi,y\n1,2\n2,4\nx,5\n", "column 'bmi', line 4: 'x' is not a number"),
    ("bmi,y\n1,2\n2,high\n3,low\n", r"column 'y', line 3: 'high' is not a .*use task=logistic"),
    ("bmi,y\n1,2\n,4\n3,5\n,6\n", r"column 'bmi' has 2 missing .* first in line 3.*fill them in"),
    ("bmi,y\n1,2\ninf,4\n3,5\n", "column 'bmi' has 1 missing or infinite"),
    (
        "bmi,y\n1,2\n2,inf\n3,5\n",
        "column 'y' has 1 missing or infinite .* in line 3",
    ),
    ("bmi,y\n1,7\n2,7\n3,7\n", "target 'y' is 7 in all 3 rows: there is nothing to predict"),
    ("1,2\n3,4\n5,6\n", "column names 1, 2 are all numbers.*header line"),
    ("only\n1\n2\n", "has 1 columns and 2 rows: expected at least one column of features"),
    ("a,y\n", "has 2 columns and 0 rows"),
    ("", "cannot be read as a csv table: No columns to parse"),
]


@pytest.mark.parametrize(("text", "message"), REGRESSION)
def test_bad_table_is_refused(text: str, message: str, write) -> None:
    with pytest.raises(ValueError, match=message):
        load(write("t.csv", text))


LABELS = [
    ("a,k\n1,x\n2,x\n3,x\n", "every row of 'k' has the label 'x': there is nothing to tell apart"),
    ("a,k\n1,\n2,\n3,\n", "column 'k' has 3 missing"),
    (
        "a,k\n1,x\n2,x\n3,y\n4,x\n",
        "1 of the 2 labels in 'k' have fewer than 3 rows, for example 'y'",
    ),
    ("a,k\n1,0.5\n2,0.7\n3,0.1\n", "3 of the 3 labels .* use a regression task"),
]


@pytest.mark.parametrize(("text", "message"), LABELS)
def test_bad_labels_are_refused(text: str, message: str, write) -> None:
    with pytest.raises(ValueError, match=message):
        load(write("t.csv", text), kind="classification")


def test_dates_are_not_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame({"day": pd.to_datetime(["2026-01-01", "2026-01-02"]), "y": [1.0, 2.0]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'day' holds datetime64.*Turn it into numbers"):
        load(str(tmp_path / "t.parquet"))


ARRAYS = [
    ({"a": np.ones(3)}, "holds a: expected X and y, or X_train"),
    ({"X": np.ones((3, 2)), "y": np.ones(4)}, r"X is \[3, 2\] and y is \[4\]: expected \[rows"),
    ({"X": np.ones(3), "y": np.ones(3)}, r"X is \[3\] and y is \[3\]"),
    ({"X": np.ones((2, 1)) * 1j, "y": np.arange(2.0)}, "column 'x0' holds complex128"),
    ({"X": np.array([[1], [None]]), "y": np.ones(2)}, "holds objects, not numbers"),
    ({"X": np.array([[1, 2], [3, np.nan]]), "y": np.arange(2)}, "column 'x1' has 1 .* in row 1"),
]


@pytest.mark.parametrize(("arrays", "message"), ARRAYS)
def test_bad_arrays_are_refused(arrays: dict, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "t.npz"))


def test_names_and_paths_that_lead_nowhere(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'diabete'. Did you mean 'diabetes'\?"):
        load("diabete")
    monkeypatch.setattr(tables, "ROOT", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"bundled .* are diabetes;.*absent is absent\)"):
        load("unheard-of")
    with pytest.raises(ValueError, match=r"'uci_yacht' is not here: .*absent does not exist"):
        load("uci_yacht")
    with pytest.raises(ValueError, match=r"has no such file. Pass root=FOLDER"):
        load("uci_yacht", str(tmp_path))
    with pytest.raises(ValueError, match=r"'wine' is a classification set, but regression was"):
        load("wine")
    with pytest.raises(ValueError, match=r"t.csv does not exist: the folder .* has no such file"):
        load(str(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match=r"t.csv does not exist: .* does not exist either"):
        load(str(tmp_path / "none" / "t.csv"))
    with pytest.raises(ValueError, match=r"does not end in one of .csv, .tsv"):
        load(str(tmp_path / "t.json"))


def test_target_that_is_not_there(write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no column 'height' for the target; its columns are age"):
        load(write("t.csv", NUMBERS), target="height")
    with pytest.raises(ValueError, match="target='bmi' names a column of a csv or parquet"):
        load("diabetes", target="bmi")
    np.savez(tmp_path / "t.npz", X=np.ones((2, 1)), y=np.arange(2))
    with pytest.raises(ValueError, match="an npz file has its target in y"):
        load(str(tmp_path / "t.npz"), target="x0")


def fetched(monkeypatch, frame: pd.DataFrame, target) -> list[dict]:
    """Put a frame where scikit-learn would fetch one; gives the calls that were made."""
    calls = []

    def fetch(**which):
        calls.append(which)
        return Bunch(data=frame, target=target)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    return calls


def test_openml_sets_are_fetched_by_scikit_learn(monkeypatch) -> None:
    frame = pd.DataFrame(
        {"a": [1, 2, 3], "town": pd.Categorical(["x", "y", "x"]), "b": [0.5, 1, 2]}
    )
    calls = fetched(monkeypatch, frame, pd.Series([1.0, 2.0, 4.0], name="price"))
    table = load("openml:houses")
    np.testing.assert_array_equal(table.X, frame[["a", "b"]])
    assert (table.feature_names, table.source) == (("a", "b"), "openml:houses")
    assert table.notes == ("1 categorical columns left out",)
    load("openml:houses:2")
    load("openml:537")
    kept = dict(as_frame=True, parser="auto")
    wanted = [dict(name="houses"), dict(name="houses", version=2), dict(data_id=537)]
    assert calls == [which | kept for which in wanted]


def test_openml_labels_and_refusals(monkeypatch) -> None:
    frame = pd.DataFrame({"a": np.arange(6.0)})
    labels = pd.Series(pd.Categorical(["no", "yes"] * 3), name="k")
    fetched(monkeypatch, frame, labels)
    assert load("openml:mail", kind="classification").classes == ("no", "yes")
    with pytest.raises(ValueError, match="column 'k', row 0: 'no' is not a number"):
        load("openml:mail")
    with pytest.raises(ValueError, match="target='k' names a column of a csv"):
        load("openml:mail", target="k")
    with pytest.raises(
        ValueError, match="'openml:mail:new' is no OpenML data set: write openml:NAME"
    ):
        load("openml:mail:new")
    fetched(monkeypatch, frame.assign(a=[1, np.nan] * 3), labels)
    with pytest.raises(ValueError, match="openml:mail: column 'a' has 3 missing"):
        load("openml:mail", kind="classification")
    fetched(monkeypatch, frame, None)
    with pytest.raises(ValueError, match="names no single target column"):
        load("openml:mail")
    fetched(monkeypatch, frame.astype(str).astype("category"), labels)
    with pytest.raises(ValueError, match="has no numeric column among its 1"):
        load("openml:mail", kind="classification")


def test_openml_without_a_network_says_what_was_tried(monkeypatch) -> None:
    def fails(**which):
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, "fetch_openml", fails)
    words = (
        r"'openml:houses' could not be fetched \(OSError: Name or .*fetch_openml.*bundled.*root="
    )
    with pytest.raises(ValueError, match=words):
        load("openml:houses")
