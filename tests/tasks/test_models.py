"""A saved model predicts what the run's metrics judged, without a pickle, as scikit-learn would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error
from sklearn.model_selection import cross_val_predict
from sklearn.utils.validation import check_is_fitted

from tasks.custom import custom
from tasks.datasets.design import prepare
from tasks.datasets.tabular import Tabular
from tasks.kernel import kernel_ridge
from tasks.lasso import lasso
from tasks.logistic import logistic
from tasks.models import load_model, save_model
from tasks.ridge import ridge
from tests.tasks.test_messy import messy


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    messy().to_csv(path, index=False)
    return str(path)


def saved(task: Any, folder: Path) -> Any:
    save_model(task.model(task.hyper, task.params), folder / "model")
    return load_model(folder / "model")


MAKERS = {
    "ridge": lambda data: ridge({"data": data}),
    "ridge, hold-out, clipped": lambda data: ridge({"data": data, "outer": "holdout", "clip": 2.0}),
    "lasso": lambda data: lasso({"data": data}),
    "elastic net": lambda data: custom(data=data, family="elastic_net"),
    "kernel": lambda data: kernel_ridge({"data": data}),
    "custom": lambda data: custom(data=data, folds=3),
}


@pytest.mark.parametrize("name", MAKERS)
def test_model_on_raw_test_rows_gives_the_metrics_of_the_run(
    name: str, table: str, tmp_path: Path
) -> None:
    task = MAKERS[name](table)
    model = saved(task, tmp_path)
    parts = prepare(Tabular(table, "holdout"), "regression").parts
    rows = pd.read_csv(table).iloc[parts.test]
    mse = mean_squared_error(rows["y"], model.predict(rows))
    metrics = task.metrics(task.hyper, task.params)
    assert mse == pytest.approx(metrics["test_mse"], rel=1e-9)
    assert is_regressor(model)


@pytest.mark.parametrize("labels", [["no", "yes"], [0, 1], [False, True], ["a", "b", "c"]])
def test_classifier_gives_the_metrics_and_the_labels_of_the_table(
    labels: list[Any], tmp_path: Path
) -> None:
    frame = messy(200)
    ranks = frame["y"].rank(pct=True).to_numpy() * (len(labels) - 1e-9)
    frame["y"] = [labels[int(rank)] for rank in ranks]
    frame.to_csv(tmp_path / "t.csv", index=False)
    task = logistic(str(tmp_path / "t.csv"))
    model = saved(task, tmp_path)
    parts = prepare(Tabular(str(tmp_path / "t.csv")), "classification").parts
    rows = frame.iloc[parts.test]
    metrics = task.metrics(task.hyper, task.params)
    assert is_classifier(model)
    assert list(model.classes_) == labels
    shares = model.predict_proba(rows)
    np.testing.assert_allclose(shares.sum(1), 1)
    accuracy = accuracy_score(rows["y"].to_numpy(), model.predict(rows))
    assert accuracy == pytest.approx(metrics["test_accuracy"])
    assert model.score(rows, rows["y"]) == pytest.approx(accuracy)
    loss = log_loss(rows["y"], shares, labels=labels)
    assert loss == pytest.approx(metrics["test_log_loss"], rel=1e-6)


def test_bundled_data_need_no_frame(tmp_path: Path) -> None:
    """Against scikit-learn's Ridge on the same rows, whose penalty belongs to the sum."""
    task = ridge({"degree": 1}, penalty="global", start=0.3)
    model = saved(task, tmp_path)
    design = prepare(Tabular(degree=1), "regression")
    X, y = design.development
    theirs = Ridge(alpha=0.3 * len(y)).fit(X, y)
    raw = design.table.X[design.parts.test]
    np.testing.assert_allclose(model.predict(raw), theirs.predict(design.test[0]))
    found = model.coefficients
    assert found.pop("intercept") == pytest.approx(theirs.intercept_)
    assert list(found) == list(design.table.feature_names)
    np.testing.assert_allclose(list(found.values()), theirs.coef_)


def test_it_is_an_estimator(table: str, tmp_path: Path) -> None:
    task = ridge(table)
    model: Any = saved(task, tmp_path)
    rows = messy(30, seed=1)
    check_is_fitted(model)
    assert issubclass(type(model), BaseEstimator)
    assert clone(model) is model
    np.testing.assert_array_equal(model.fit(rows, rows["y"]).predict(rows), model.predict(rows))
    np.testing.assert_allclose(cross_val_predict(model, rows, rows["y"]), model.predict(rows))
    assert set(model.feature_names_in_) == {"city", "age", "member", "day"}
    assert "TabularRegressor" in repr(model)
    shuffled = rows[list(rows.columns[::-1])].assign(more=1)
    np.testing.assert_allclose(model.predict(shuffled), model.predict(rows))


def test_new_levels_and_missing_entries_are_answered(table: str, tmp_path: Path) -> None:
    model = saved(ridge(table), tmp_path)
    rows = messy(5, seed=2)
    rows["city"] = ["nowhere", None, "A", "B", "C"]
    rows["age"] = np.nan
    rows["day"] = None
    assert np.isfinite(model.predict(rows)).all()


def test_wrong_rows_are_refused(table: str, tmp_path: Path) -> None:
    model = saved(ridge(table), tmp_path)
    rows = messy(5, seed=2)
    with pytest.raises(ValueError, match="1 columns that the model was fitted on are missing: age"):
        model.predict(rows.drop(columns="age"))
    with pytest.raises(ValueError, match="column 'age' held a number in the training rows"):
        model.predict(rows.assign(age="old"))
    with pytest.raises(ValueError, match="has infinite values"):
        model.predict(rows.assign(age=np.inf))
    with pytest.raises(ValueError, match=r"X is \[5, 2\]: expected \[rows, 4\]"):
        model.predict(np.zeros((5, 2)))


DAMAGE: list[dict[str, Any]] = [
    {"format": 9},
    {"columns": []},
    {"columns": [{"name": "a"}]},
    {"columns": 3},
    {"core": "os.system"},
    {"degree": 7},
    {"classes": [{}], "kind": "classification"},
    {"names": "abc"},
    {"clip": "x"},
]


@pytest.mark.parametrize("change", DAMAGE, ids=str)
def test_files_of_another_kind_are_refused(change: dict, table: str, tmp_path: Path) -> None:
    saved(ridge(table), tmp_path)
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="this is no model of this program"):
        load_model(tmp_path / "model")


def test_nothing_in_it_is_a_pickle(table: str, tmp_path: Path) -> None:
    saved(ridge(table), tmp_path)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["arrays.npz", "model.json"]
    with np.load(tmp_path / "model" / "arrays.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fib" for name in arrays.files)
    with pytest.raises(ValueError, match=r"there is no model here"):
        load_model(tmp_path)
