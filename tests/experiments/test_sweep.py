"""`-m`: one run of each combination; started again, it does only what is missing; one table."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import report
from experiments.cli.sweep_validation import one_of_each
from experiments.reports import table
from tests.experiments.conftest import Command


@pytest.mark.extended
def test_sweep_resumes_and_reports(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "sweep"
    sweep = ["-m", f"hydra.sweep.dir={folder}", "seed=0,1", "solver.sampling=iid,epoch"]
    sweep += ["max_error=100.0"]  # two hundred steps are too few, and not what is tested
    assert command(*sweep).status == 0
    runs = sorted(path.parent for path in folder.rglob("result.json"))
    assert len(runs) == 4
    for run in runs:
        assert run.parent == folder
        assert not set("=,[]{} ") & set(run.name)
    times = {run: (run / "result.json").stat().st_mtime_ns for run in runs}
    (runs[1] / "result.json").unlink()
    again = command(*sweep)
    assert again.status == 0
    assert again.out.count("finished already") == 3
    for run in runs:
        assert ((run / "result.json").stat().st_mtime_ns == times[run]) == (run != runs[1])

    assert report.main([str(folder), "--no-page"]) == 0
    assert "solver.sampling=iid" in capsys.readouterr().out
    with (folder / "report.csv").open(newline="") as file:
        found = {row["run"]: row for row in csv.DictReader(file)}
    assert found.keys() == {"solver.sampling=iid", "solver.sampling=epoch"}
    for name, row in found.items():
        scores = [
            result["test_metrics"]["mse"]
            for result in (json.loads((run / "result.json").read_text()) for run in runs)
            if name in result["overrides"]
        ]
        assert (row["metric"], row["completed"], row["of"]) == ("mse", "2", "2")
        assert float(row["mean"]) == pytest.approx(np.mean(scores))
        # Student's t with one degree of freedom: 12.7062 standard errors.
        half = 12.7062 * np.std(scores, ddof=1) / math.sqrt(2)
        assert float(row["95 %"]) == pytest.approx(half, rel=1e-5)
    assert (folder / "report.md").read_text().startswith("| task")


@pytest.mark.extended
def test_one_bad_job_stops_no_other(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    outcome = command("-m", f"hydra.sweep.dir={folder}", "solver.step_size=9.0,0.05,abc")
    assert outcome.status == 2
    results = [json.loads(path.read_text()) for path in folder.rglob("result.json")]
    assert sorted(result["status"] for result in results) == ["completed", "diverged", "failed"]
    assert report.main([str(folder), "--no-page"]) == 0
    verdicts = list(table.make_table(table.rows(report.read(folder)))["verdict"])
    assert verdicts == ["best", "1 diverged", "1 failed"]


def test_misspelt_name_is_found_before_the_first_job(command: Command, tmp_path: Path) -> None:
    """Of jobs that differ in values only, one is composed beforehand; of each leaf one."""
    jobs = [[f"seed={k}", f"task={task}", "x=${y}"] for task in ("a", "b") for k in range(3)]
    assert one_of_each(jobs, {"task"}) == [jobs[0], jobs[3]]
    assert one_of_each([["x=${y}"], ["x=${z}"]], {"task"}) == [["x=${y}"], ["x=${z}"]]
    assert len(one_of_each([["+task@a=b"], ["+task@a=c"], ["hydra/launcher=d"]], {"task"})) == 3
    folder = tmp_path / "sweep"
    outcome = command("-m", f"hydra.sweep.dir={folder}", "seed=0,1", "solver=sgd,sdg")
    assert outcome.status == 1
    assert "solver=sdg: there is no such solver. Did you mean 'sgd'?" in outcome.err
    assert not list(folder.rglob("result.json"))


def test_resume_is_for_one_run(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 0
    line = ["-m", f"hydra.sweep.dir={tmp_path / 's'}", f"resume={folder}", "seed=0,1"]
    outcome = command(*line, quick=[])
    assert outcome.status == 1
    assert "resume= goes on with one run" in outcome.err


def result(label: str, seed: int, score: float, status: str = "completed") -> dict[str, Any]:
    return {
        "task": "t",
        "status": status,
        "seed": seed,
        "test_metrics": {"mse": score, "r2": 0.5},
        "value": score,
        "counts": {"gradients": 10, "jvps": 3},
        "seconds": 2.0,
        "compile_seconds": 1.0,
        "overrides": [label, f"seed={seed}", "steps=9"],
        "choices": {"task": "t"},
    }


def verdicts(results: list[dict[str, Any]]) -> dict[str, str]:
    made = table.make_table(table.rows(results))
    return dict(zip(made["run"], made["verdict"], strict=True))


def test_winner_is_told_from_what_is_as_good() -> None:
    noise = [0.0, 1.0, -2.0, 1.0]  # of the seeds: common to all rows, so differences are exact
    results = [result("a", seed, 5 + noise[seed]) for seed in range(4)]
    results += [result("b", seed, 5.2 + noise[seed] + 0.01 * (-1) ** seed) for seed in range(4)]
    results += [result("c", seed, 5.1 + 3 * noise[seed]) for seed in range(4)]
    assert verdicts(results) == {"a": "best", "c": "as good (95 %)", "b": ""}


def test_row_counts_what_did_not_complete() -> None:
    results = [result("a", 0, 1.0), result("a", 1, 9.0, "diverged"), result("b", 0, 2.0, "failed")]
    assert verdicts(results) == {"a": "best, 1 diverged", "b": "1 failed"}
    (first, second) = table.rows(results)
    assert (first.calls, first.seconds, first.mean) == (13, 3.0, 1.0)
    assert math.isnan(second.mean)


def test_mean_over_survivors_wins_nothing() -> None:
    results = [result("a", 0, 1.0), result("a", 1, 9.0, "diverged")]
    results += [result("b", 0, 5.0), result("b", 1, 6.0)]
    results += [result("c", 0, 6.0), result("c", 1, 7.0, "running")]
    assert verdicts(results) == {"b": "best", "c": "1 running", "a": "1 diverged"}


def test_single_run_has_no_interval() -> None:
    (row,) = table.make_table(table.rows([result("a", 0, 1.0)])).to_dict("records")
    assert row["run"] == "-"
    assert math.isnan(row["95 %"])


def test_a_run_that_was_made_again_counts_once() -> None:
    results = [result("a", 0, 9.0), result("a", 0, 1.0), result("b", 0, 2.0), result("b", 1, 2.0)]
    made = table.make_table(table.rows(results))
    assert list(made["mean"]) == [1.0, 2.0]
    assert list(made["completed"]) == [1, 2]
    assert list(made["difference"]) == [0.0, 1.0]


def test_interval_covers_the_mean_19_times_in_20() -> None:
    rng, repetitions = np.random.default_rng(0), 1000
    draws = rng.normal(3.0, 2.0, (repetitions, 5))
    hits = sum(abs(row.mean() - 3) <= table.interval(list(row)) for row in draws)
    standard_error = math.sqrt(0.95 * 0.05 / repetitions)
    assert abs(hits / repetitions - 0.95) < 4 * standard_error  # false alarm: 6e-5


def test_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report.main([str(tmp_path)]) == 1
    assert "there is no result.json in or below this folder" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{")
    assert report.main([str(tmp_path)]) == 1
    assert "result.json: this is no JSON" in capsys.readouterr().err
