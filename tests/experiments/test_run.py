"""One run through the whole command line: its files, its exit status, its refusals."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from experiments.runs import job, results
from tests.conftest import ROOT
from tests.experiments import tiny
from tests.experiments.conftest import Command


def result_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_run_leaves_its_files_and_numbers(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    outcome = command(f"hydra.run.dir={folder}", "plot=true", "solver.step_size=0.1")
    assert outcome.status == 0, outcome.err
    result = result_in(folder)
    fixed = {"task", "seed", "value_start", "value", "test_metrics", "baselines", "hyper_summary"}
    fixed |= {"evidence", "counts", "seconds", "compile_seconds", "versions", "status"}
    assert fixed <= result.keys()
    assert (result["status"], result["task"], result["seed"]) == ("completed", "tiny", 0)
    assert result["value"] < result["value_start"]
    assert result["seconds"] > 0 <= result["compile_seconds"]
    # Forward: K gradients per estimate and one for the residual at its end; one more at the start.
    assert result["counts"]["jvps"] == 5 * 200 * 3
    assert 5 * 200 <= result["counts"]["gradients"] <= 5 * 202
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / ".hydra" / "config.yaml").is_file()
    table = pyarrow.parquet.read_table(folder / "history.parquet")
    assert table.column("value").to_pylist() == pytest.approx(
        [result["value_start"], *table.column("value").to_pylist()[1:-1], result["value"]]
    )
    assert {"step", "grad_norm", "inner_residual", "hyper [0]", "hyper [2]"} <= {
        *table.column_names
    }
    for shown in ("best first", "no tuning", "bilevel, this run", "closed form", "curves.png"):
        assert shown in outcome.out


@pytest.mark.extended
def test_metrics_and_check_are_those_of_the_task(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    exact = ["estimator=implicit", "solver=gradient_descent", "solver.step_size=0.5"]
    quick = ["task=tiny", "steps=3", "compile_cache=null", "precision=float64", *exact]
    outcome = command(f"hydra.run.dir={folder}", "estimator.steps=200", quick=quick)
    assert outcome.status == 0, outcome.err
    result, task = result_in(folder), tiny.tiny()
    assert result["baselines"] == task.baselines()
    start, end = result["checks"]
    assert (start["step"], end["step"]) == (0, 2)
    for check in (start, end):  # the inner problem is solved: the estimate is exact
        assert check["grad_error"] < 1e-6
        assert check["cosine"] == pytest.approx(1)
    assert task.exact is not None
    value, grad = task.exact(np.full(3, -2.0))
    assert result["value_start"] == pytest.approx(value, rel=1e-9)
    assert start["grad_norm"] == pytest.approx(np.linalg.norm(grad), rel=1e-9)


@pytest.mark.extended
def test_what_auto_chose_is_shown_and_recorded(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    outcome = command(f"hydra.run.dir={folder}", "estimator=auto", "steps=2")
    assert outcome.status == 0, outcome.err
    assert result_in(folder)["chosen"] == "ClosedForm: the inner loss is quadratic with 3 params"
    assert "ClosedForm: the inner loss" in outcome.out


@pytest.mark.extended
def test_precision_is_of_the_run_only(command: Command, tmp_path: Path) -> None:
    import jax.numpy as jnp

    values = []
    for precision in ("float32", "float64"):
        folder = tmp_path / precision
        assert command(f"hydra.run.dir={folder}", f"precision={precision}").status == 0
        values.append(result_in(folder)["value"])
    narrow, wide = values
    assert float(np.float32(narrow)) == narrow
    assert float(np.float32(wide)) != wide
    assert narrow == pytest.approx(wide, rel=1e-4)
    assert jnp.ones(()).dtype == jnp.float32


def test_seed_changes_data_and_minibatches(command: Command, tmp_path: Path) -> None:
    def value(*arguments: str) -> float:
        folder = tmp_path / "-".join(arguments).replace("=", "")
        assert command(f"hydra.run.dir={folder}", *arguments).status == 0
        return result_in(folder)["value"]

    first = value("seed=0")
    assert value("seed=1") != first
    assert value("seed=1", "task.seed=0") != first  # other minibatches on the same data


def test_divergence_is_status_2(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    outcome = command(f"hydra.run.dir={folder}", "solver.step_size=9.0")
    assert outcome.status == 2
    result = result_in(folder)
    assert result["status"] == "diverged"
    assert "step size" in result["message"]
    assert "step size" in outcome.out


def test_what_is_not_finite_is_never_a_success(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_floats", lambda metrics: dict.fromkeys(metrics, float("nan")))
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 2
    result = result_in(folder)
    assert result["status"] == "diverged"
    assert "mse" in result["message"]
    assert result["test_metrics"]["mse"] is None


def test_failure_is_written_down(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, run: Any, *rest: Any) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(job.Job, "save", fail)
    outcome = command(f"hydra.run.dir={tmp_path / 'a'}")
    assert outcome.status == 1
    result = result_in(tmp_path / "a")
    assert result["status"] == "failed"
    assert result["error"] == "RuntimeError: the disk is on fire"
    assert "in fail" in result["traceback"]
    assert "the disk is on fire" in outcome.err


def test_data_of_wrong_size_is_refused_in_a_sentence(command: Command, tmp_path: Path) -> None:
    outcome = command(f"hydra.run.dir={tmp_path / 'a'}", "solver.batch_size=24")
    assert outcome.status == 1
    assert "batch_size=24 is larger than the number of inner examples, 23" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.extended
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_can_be_resumed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    save = job.Job.save

    def save_then_interrupt(self: Any, run: Any, folder: Path) -> None:
        save(self, run, folder)
        if run.done >= 3:
            os.kill(os.getpid(), signum)

    assert threading.current_thread() is threading.main_thread()
    folder = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "save", save_then_interrupt)
        outcome = command(f"hydra.run.dir={folder}")
    assert outcome.status == 130
    assert result_in(folder)["status"] == "interrupted"
    assert f"resume={folder}" in outcome.out
    assert command(f"resume={folder}", quick=["task=tiny"]).status == 1  # task= may not be given
    assert result_in(folder)["status"] == "interrupted"
    assert command(f"resume={folder}", quick=[]).status == 0
    assert result_in(folder)["status"] == "completed"


def test_history_without_pyarrow_is_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    history = {"value": np.array([1.5, 0.1]), "hyper": np.array([[1.0, 2.0], [3.0, 4.0]])}
    path = results.write_history(tmp_path, history, ["a", 'b "c"'])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [1.5, 0.1]
    assert [float(row['hyper b "c"']) for row in rows] == [2.0, 4.0]


def test_looking_at_the_configuration_imports_no_jax() -> None:
    code = (
        "import sys; sys.argv = ['run', *sys.argv[1:]]\n"
        "from experiments.run import main\n"
        "status = main()\n"
        "heavy = {'jax', 'numpy', 'sklearn', 'flax', 'matplotlib', 'rich'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    command = [sys.executable, "-c", code, "--cfg", "job", "solver=adam"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optax.adam" in done.stdout
