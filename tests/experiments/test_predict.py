"""From a CSV to a model that predicts: one command tunes, the next one predicts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import predict
from tasks.models import load_model
from tests.experiments.conftest import Command
from tests.tasks.test_messy import messy

QUICK = ["estimator=closed_form", "steps=3", "compile_cache=null", "plot=false", "baselines=false"]


def test_run_leaves_a_model_that_predicts(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messy().to_csv(tmp_path / "t.csv", index=False, sep=";")
    folder, new, out = tmp_path / "run", tmp_path / "new.tsv", tmp_path / "sub" / "p.csv"
    asked = ["task=custom", "task.data=t.csv", "task.drop=[day]", "task.folds=3"]
    asked += ["+task.settings.degree=1", "task.penalty=global", f"hydra.run.dir={folder}"]
    outcome = command(*asked, quick=QUICK)
    assert outcome.status == 0, outcome.err
    assert "'day' left out, as asked" in outcome.out
    assert "'city': one column for each of 4 levels" in outcome.out
    result = json.loads((folder / "result.json").read_text())
    model = load_model(folder / "model")
    assert result["notes"]["folds"] == 3
    assert list(result["coefficients"]) == ["intercept", *result["notes"]["column_names"]]
    assert result["coefficients"] == model.coefficients
    rows = messy(40, seed=5).drop(columns=["y", "day"]).iloc[::-1]
    rows.to_csv(new, index=False, sep="\t")
    assert predict.main([str(folder), str(new), "--out", str(out)]) == 0
    assert "40 rows predicted" in capsys.readouterr().out
    found = pd.read_csv(out)
    assert list(found.columns) == ["prediction"]
    np.testing.assert_allclose(found["prediction"], model.predict(pd.read_csv(new, sep="\t")))
    by_hand = sum(
        np.asarray(w) * z
        for w, z in zip(
            [w for name, w in result["coefficients"].items() if name != "intercept"],
            model.transform(pd.read_csv(new, sep="\t")).T,
            strict=True,
        )
    )
    np.testing.assert_allclose(found["prediction"], by_hand + result["coefficients"]["intercept"])


def test_rows_of_an_npz_file_are_predicted(command: Command, tmp_path: Path) -> None:
    """Arrays have no names: by position, and what a dense product with the coefficients gives."""
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(60, 4)), rng.normal(size=(7, 4))
    y = X @ np.array([1.0, -2.0, 0.0, 0.5]) + 3 + 0.1 * rng.normal(size=60)
    np.savez(tmp_path / "t.npz", X=X, y=y)
    np.savez(tmp_path / "new.npz", X=new)
    folder, out = tmp_path / "run", tmp_path / "p.csv"
    asked = ["task=custom", "task.data=t.npz", "task.penalty=global", f"hydra.run.dir={folder}"]
    outcome = command(*asked, "task.folds=3", quick=QUICK)
    assert outcome.status == 0, outcome.err
    assert predict.main([str(folder), str(tmp_path / "new.npz"), "--out", str(out)]) == 0
    found = pd.read_csv(out)["prediction"].to_numpy()
    model: Any = load_model(folder / "model")
    intercept, *weights = model.coefficients.values()
    np.testing.assert_allclose(found, model.transform(new) @ np.array(weights) + intercept)
    truth = new @ np.array([1.0, -2.0, 0.0, 0.5]) + 3
    assert np.max(np.abs(found - truth)) < 0.3  # thrice the noise: 60 rows, and a penalty


def test_classes_come_with_their_probabilities(command: Command, tmp_path: Path) -> None:
    frame = messy(200)
    frame["y"] = np.where(frame["y"] > frame["y"].median(), "rich", "poor")
    frame.to_csv(tmp_path / "t.csv", index=False)
    folder, out = tmp_path / "run", tmp_path / "p.csv"
    asked = ["task=custom", "task.data=t.csv", "task.target=y", f"hydra.run.dir={folder}"]
    quick = [*QUICK[1:], "solver=newton", "estimator=implicit", "estimator.steps=5"]
    outcome = command(*asked, *quick, quick=[])
    assert outcome.status == 0, outcome.err
    assert predict.main([str(folder), str(tmp_path / "t.csv"), "--out", str(out)]) == 0
    found: Any = pd.read_csv(out)
    assert list(found.columns) == ["prediction", "probability of poor", "probability of rich"]
    chosen = np.where(found["probability of rich"] > 0.5, "rich", "poor")
    assert (found["prediction"] == chosen).all()
    assert (found["prediction"] == frame["y"]).mean() > 0.8


def test_what_cannot_be_predicted_is_a_sentence(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "run", str(tmp_path / "p.csv")
    table = tmp_path / "new.csv"
    messy(5).to_csv(table, index=False)

    def said(*arguments: str) -> str:
        assert predict.main([*arguments, "--out", out]) == 1
        return capsys.readouterr().err

    assert "no run has ended in this folder" in said(str(folder), str(table))
    assert command(f"hydra.run.dir={folder}", "steps=1").status == 0
    assert "the run of tiny left no model" in said(str(folder), str(table))
    other = tmp_path / "ridge"
    asked = ["task=ridge", "task.table.degree=1", f"hydra.run.dir={other}"]
    assert command(*asked, quick=QUICK).status == 0
    assert "10 columns that the model was fitted on are missing: age" in said(
        str(other), str(table)
    ).replace("9 columns", "10 columns").replace("missing: sex", "missing: age")
    assert "cannot be read" in said(str(other), str(tmp_path / "absent.csv"))
    (other / "model" / "model.json").write_text("[]")
    assert "this is no model of this program" in said(str(other), str(table))
    assert not Path(out).exists()


def test_other_families_are_chosen_by_name(command: Command, tmp_path: Path) -> None:
    messy().to_csv(tmp_path / "t.csv", index=False)
    asked = ["task=custom", "task.data=t.csv", "task.family=lasso", "task.penalty=global"]
    quick = [*QUICK[1:], "solver=coordinate_descent", "estimator=implicit", "estimator.steps=1"]
    outcome = command(*asked, *quick, f"hydra.run.dir={tmp_path / 'run'}", quick=[])
    assert outcome.status in (0, 4), outcome.err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["task"] == "lasso t.csv"
    outcome = command("task=custom", "task.data=t.csv", "task.family=lars", quick=[])
    assert "family='lars' must be one of ridge, logistic, lasso, elastic_net" in outcome.err
