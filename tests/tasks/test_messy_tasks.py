"""Messy tables in a task: statistics of the training rows, columns asked for, groups, targets."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.datasets.design import prepare
from tasks.datasets.tables import load
from tasks.datasets.tabular import Tabular
from tasks.logistic import logistic
from tasks.ridge import ridge
from tests.tasks.test_messy import messy


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    frame = messy()
    frame.insert(0, "id", range(1, len(frame) + 1))
    frame.insert(1, "firm", [f"f{i % 17}" for i in range(len(frame))])
    frame.to_csv(path, index=False)
    return str(path)


def test_statistics_are_those_of_the_training_rows(table: str) -> None:
    design = prepare(Tabular(table, "holdout", drop=["firm"]), "regression")
    age = next(column for column in design.columns if column.name == "age")
    frame = pd.read_csv(table)
    assert age.fill == pytest.approx(frame["age"].iloc[design.parts.train].median())
    assert age.fill != pytest.approx(frame["age"].median())
    np.testing.assert_allclose(design.X[design.train].mean(0), 0, atol=1e-9)


def test_decisions_are_recorded(table: str) -> None:
    remarks = ridge({"data": table, "drop": ["firm"]}).notes["remarks"]
    for words in (
        "'id' left out: it numbers the rows",
        "'firm' left out, as asked",
        "'city': one column for each of 4 levels",
        "'age': 24 of 120 missing",
        "'day': a date, in days since 1970",
    ):
        assert any(words in remark for remark in remarks), (words, remarks)


def test_only_the_columns_that_were_asked_for_are_used(table: str) -> None:
    found = ridge({"data": table, "columns": ["age", "member"], "degree": 1}).notes
    assert found["column_names"] == ["age", "member"]
    with pytest.raises(ValueError, match="has no column 'agee'; its columns are id, firm"):
        ridge({"data": table, "columns": ["agee"]})
    with pytest.raises(ValueError, match="no column of features is left"):
        ridge({"data": table, "columns": ["y"], "target": "y"})


@pytest.mark.parametrize("outer", ["holdout", "kfold"])
@pytest.mark.parametrize("seed", range(5))
def test_rows_of_a_group_stay_together(table: str, outer: str, seed: int) -> None:
    design = prepare(Tabular(table, outer, groups="firm", seed=seed), "regression")
    firm = pd.read_csv(table)["firm"].to_numpy()
    parts = design.parts
    used = [set(firm[rows]) for rows in (parts.development, parts.test)]
    assert not used[0] & used[1]
    assert 20 <= len(parts.test) <= 52  # of 120, near the share of 0.3
    assert sorted(np.concatenate([parts.development, parts.test])) == list(range(120))
    inside = firm[parts.development]
    train = design.train if design.train.ndim == 2 else design.train[:, None]
    for fold in train.T:
        assert not set(inside[fold]) & set(inside[~fold])
        assert (~fold).any()
    if outer == "kfold":
        np.testing.assert_array_equal((~train).sum(1), 1)


def test_groups_are_no_column_of_features(table: str) -> None:
    design = prepare(Tabular(table, groups="firm"), "regression")
    assert "firm" not in {column.name for column in design.columns}
    with pytest.raises(ValueError, match=r"folds=18, but there are 1\d groups"):
        prepare(Tabular(table, groups="firm", folds=18), "regression")
    with pytest.raises(ValueError, match="has no column 'team' for the groups"):
        prepare(Tabular(table, groups="team"), "regression")


def test_rows_without_a_target_are_left_out_with_a_remark(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = messy()
    frame.loc[[3, 5], "y"] = np.nan
    frame.to_csv(path, index=False)
    found = load(str(path), numbers=False)
    assert len(found.y) == 118
    assert "2 rows without 'y' left out, the first is line 5" in found.notes


def test_text_target_of_a_regression_names_the_other_task(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    messy().assign(y=["no", "yes"] * 60).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"'no' is not a number .*use task=logistic"):
        ridge(str(path))
    assert logistic(str(path)).notes["classes"] == ["no", "yes"]


def test_counts_name_poisson(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "t.csv"
    messy().assign(y=rng.poisson(2.0, 120)).to_csv(path, index=False)
    assert any("PoissonRegressor" in note for note in load(str(path), numbers=False).notes)
    messy().to_csv(path, index=False)
    assert not any("Poisson" in note for note in load(str(path), numbers=False).notes)


def test_decimal_commas_are_numbers_in_the_target_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = messy()
    frame.to_csv(path, index=False, sep=";", decimal=",")
    found = load(str(path), numbers=False)
    np.testing.assert_allclose(found.y, frame["y"])
    np.testing.assert_allclose(found.parsed["age"], frame["age"])


def test_tasks_that_take_numbers_only_say_so(table: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        load(table)


def test_levels_of_a_category_share_the_penalty_of_their_column(table: str) -> None:
    found = ridge({"data": table, "drop": ["firm"]}).notes["penalties"]
    assert set(found) == {"city", "age", "member", "day", "products", "squares"}
    assert len(found) == 6
