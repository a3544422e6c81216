"""Several starts, early stopping and the hybrid search on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from experiments import search
from experiments.cli.settings import check
from experiments.common.errors import BadInputError
from tasks.ridge import ridge
from tests.experiments.conftest import Command
from tests.experiments.test_search import QUICK as SEARCH
from tests.experiments.test_search import opened

HOLDOUT = [
    "task=ridge_holdout",
    "task.table.degree=1",
    "task.penalty=per_feature",
    "estimator=closed_form",
    "outer=adam",
    "outer.learning_rate=0.5",
    "plot=false",
    "baselines=false",
    "compile_cache=null",
    "every=5",
]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def values(folder: Path) -> list[float]:
    return pyarrow.parquet.read_table(folder / "history.parquet").column("value").to_pylist()


WIDE = ["precision=float64", "starts=4", "start_steps=2"]


@pytest.mark.extended
def test_the_best_start_goes_on(command: Command, tmp_path: Path) -> None:
    """It is kept for its value, and its first steps are those of the run."""
    assert command(f"hydra.run.dir={tmp_path}", *WIDE, "steps=3").status == 0
    about = result(tmp_path)["starts"]
    assert about["chosen"] == int(np.argmin(about["values"]))
    assert about["steps"] == 2
    assert about["message"] is None
    assert len(values(tmp_path)) == 3
    assert values(tmp_path)[1] == about["values"][about["chosen"]]
    outcome = command(f"hydra.run.dir={tmp_path / 'a'}", "starts=2", "adaptive=true")
    assert "so adaptive=true cannot" in outcome.err
    outcome = command(f"hydra.run.dir={tmp_path / 'b'}", "starts=2", "vmap.seeds=2")
    assert "starts, early_stopping and adaptive belong to single runs" in outcome.err


@pytest.mark.slow
def test_stopped_after_its_start_it_is_the_same_run(command: Command, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(f"hydra.run.dir={whole}", *WIDE, "steps=5").status == 0
    assert command(f"hydra.run.dir={cut}", *WIDE, "steps=3").status == 0
    assert command(f"resume={cut}", "steps=5", quick=[]).status == 0
    assert values(cut) == values(whole)
    assert result(cut)["starts"] == result(whole)["starts"]


@pytest.mark.extended
def test_early_stopping_sets_rows_aside(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    place = f"hydra.run.dir={folder}"
    outcome = command(place, "early_stopping=3", "steps=90", quick=HOLDOUT)
    assert outcome.status == 0, outcome.err
    found = result(folder)
    assert found["stopped"]
    assert f"stopped early after {found['steps']} outer steps" in found["message"]
    assert found["status"] == "completed"
    column = pyarrow.parquet.read_table(folder / "history.parquet").column("held_out").to_pylist()
    best = int(np.argmin(column))
    assert len(column) == found["steps"] == best + 4 < 90
    again = command(place, "early_stopping=3", "steps=90", quick=HOLDOUT)
    assert "finished already: stopped early" in again.out
    outcome = command(f"hydra.run.dir={tmp_path / 'b'}", "early_stopping=3")
    assert outcome.status == 1
    assert "tasks.tiny.tiny sets no second validation part aside" in outcome.err
    outcome = command(f"hydra.run.dir={tmp_path / 'c'}", "early_stopping=3", "task=ridge", quick=[])
    assert "needs outer=holdout" in outcome.err


def test_rows_are_set_aside_once() -> None:
    """Training rows stay; validation rows are in one of the two parts, none in both."""
    whole = ridge({"outer": "holdout", "degree": 1})
    split = ridge({"outer": "holdout", "degree": 1}, second=0.25)
    np.testing.assert_array_equal(split.data.inner[0], whole.data.inner[0])
    parts = np.concatenate([split.data.outer[0], split.second[0]])
    both = [np.unique(rows, axis=0) for rows in (parts, np.asarray(whole.data.outer[0]))]
    np.testing.assert_array_equal(*both)
    assert len(parts) == len(whole.data.outer[0])
    assert len(split.second[0]) == len(parts) // 4
    assert whole.second is None
    assert split.exact is not None
    exact = split.exact(split.hyper)[0]
    assert exact != pytest.approx(whole.exact(whole.hyper)[0])
    with pytest.raises(ValueError, match=r"second=0\.001 of"):
        ridge({"outer": "holdout", "degree": 1}, second=0.001)


def test_a_hybrid_search_runs_what_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every trial for the scout's steps, then the best two to the end; the runs are made up."""
    pytest.importorskip("optuna", reason="pip install -e '.[optuna]'")
    steps, found = [], {"status": "completed", "choices": {}, "overrides": [], "settings": {}}
    found |= {"task": "t", "seed": 0, "test_metrics": {"mse": 1.0}, "counts": {}}
    found |= {"seconds": 0.0, "compile_seconds": 0.0, "process": {"peak_memory_mib": 1.0}}

    def make(arguments: list[str]) -> int:
        given = dict(argument.split("=", 1) for argument in arguments)
        steps.append(int(given["steps"]))
        folder = Path(given["hydra.run.dir"])
        folder.mkdir(exist_ok=True)
        value = abs(float(given["x"])) / int(given["steps"])
        (folder / "result.json").write_text(json.dumps(found | {"value": value, "steps": 1}))
        return 0

    monkeypatch.setattr(search, "_run", make)
    line = ["--trials", "4", "--refine", "2", "--scout", "3", "--folder", str(tmp_path)]
    assert search.main([*line, "steps=12", "x=interval(1,2)"]) == 0
    assert steps == [3, 3, 3, 3, 12, 12]
    study = opened(tmp_path)
    gone_on = sorted(study.trials, key=lambda trial: trial.value)[:2]
    refined = {str(trial.number): trial.value / 4 for trial in gone_on}
    assert study.user_attrs["refined"] == refined
    assert f"(4 completed): {refined[str(gone_on[0].number)]}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_hybrid_search_goes_on_with_the_best(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = ["--trials", "3", "--refine", "1", "--scout", "1", "--folder", str(tmp_path)]
    line += ["--config-dir", str(leaves), *SEARCH, "+task.start=interval(-6,2)"]
    pytest.importorskip("optuna", reason="pip install -e '.[optuna]'")
    assert search.main(line) == 0
    study = opened(tmp_path)
    folders = sorted(path.parent for path in tmp_path.glob("*/result.json"))
    steps = [result(folder)["steps"] for folder in folders]
    best = study.best_trial.number
    assert steps == [3 if i == best else 1 for i in range(3)]
    refined = study.user_attrs["refined"][str(best)]
    assert refined < study.best_value
    assert f"(3 completed): {refined}" in capsys.readouterr().out
    assert search.main(line) == 0
    assert capsys.readouterr().out.count("finished already") == 1


def test_patience_is_a_number() -> None:
    settings = dict.fromkeys(["precision", "compile_cache", "early_stopping"])
    settings |= {"progress": "off", "steps": 1, "every": 1, "seed": 0, "starts": 1}
    settings |= {
        "mesh": {"data": None, "hosts": None},
        "evidence": "auto",
        "max_error": 0.5,
        "limit": None,
    }
    with pytest.raises(BadInputError, match="early_stopping: expected an integer or null, got 'a'"):
        check(settings | {"start_steps": 1, "early_stopping": "a"}, {})
