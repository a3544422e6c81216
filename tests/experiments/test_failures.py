"""What goes wrong outside of a run, and jobs of a sweep that fail: a sentence and a status."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.common import files
from experiments.runs.recording import recorded
from tests.conftest import ROOT
from tests.experiments.conftest import Command


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_folder_that_cannot_be_made_is_a_sentence(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        outcome = command(f"hydra.run.dir={tmp_path / place}")
        assert outcome.status == 1
        assert str(tmp_path / "file") in outcome.err
        assert "Traceback" not in outcome.err + outcome.out


@pytest.mark.parametrize("number", [28, 30, 13], ids=os.strerror)
def test_disk_that_takes_nothing_is_a_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Full, read-only, or not ours, from the first checkpoint on."""
    whole = files.os.fsync

    def refuse(descriptor: int) -> None:
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        whole(descriptor)

    monkeypatch.setattr(files.os, "fsync", refuse)
    outcome = command(f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 1
    assert f"state.npz: {os.strerror(number)}." in outcome.err
    assert "Traceback" not in outcome.err
    assert result(tmp_path / "run")["status"] == "failed"


def test_reader_that_goes_is_no_failure() -> None:
    line = f"{sys.executable} -m experiments.run --help | head -1"
    how = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], **how)
    assert done.returncode == 0
    assert done.stdout.startswith("Tune hyperparameters")
    assert not done.stderr


LEAVE = """
import sys
from tests.experiments import tiny; tiny.install()
from experiments.common.pipes import piped
from experiments import run, report, predict
sys.argv = sys.argv[1:]
main = {'run': run, 'report': report, 'predict': predict}[sys.argv[0]].main
sys.exit(main() if sys.argv[0] == 'run' else piped(main))
"""


def read_one_line(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Give a command a reader that goes before it has written a word."""
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-c", LEAVE, *arguments]
    try:
        return subprocess.run(line, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)


@pytest.mark.extended
def test_commands_whose_reader_has_gone(command: Command, leaves: Path, tmp_path: Path) -> None:
    """Rich ends the process with status 1 there; a run is interrupted and says nothing."""
    folder = tmp_path / "run"
    quick = ["--config-dir", str(leaves), "task=tiny", "compile_cache=null", "steps=2"]
    done = read_one_line(["run", *quick, f"hydra.run.dir={folder}"])
    assert (done.returncode, done.stderr) == (130, b"")
    assert command(f"hydra.run.dir={folder}").status == 0
    done = read_one_line(["report", str(folder), "--no-page"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert (folder / "report.csv").is_file()


def test_run_whose_reader_goes_can_be_resumed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.runs.progress import Display

    whole = Display.update

    def gone(display: Display, done: int, history: dict[str, Any]) -> None:
        if done >= 3:
            raise BrokenPipeError
        whole(display, done, history)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "update", gone)
        assert command(f"hydra.run.dir={tmp_path / 'run'}").status == 130
    assert result(tmp_path / "run")["status"] in ("interrupted", "running")
    assert command(f"resume={tmp_path / 'run'}", "compile_cache=null", quick=[]).status == 0


SWEEP = ["-m", "solver.step_size=0.02,-1,-2"]


def test_every_failed_job_of_a_sweep_is_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    outcome = command(*SWEEP, f"hydra.sweep.dir={folder}")
    assert outcome.status == 1
    said = [line for line in outcome.err.splitlines() if line.startswith("failed: ")]
    assert len(said) == 2
    assert all("step_size must be a positive" in line for line in said)
    assert f"2 of 3 runs failed, in {folder}:" in outcome.out
    assert "solver.step_size--1_steps-5_task-tiny: SGD: step_size must be" in outcome.out
    assert "Error executing job" not in outcome.err
    statuses = [result(path.parent)["status"] for path in folder.glob("*/result.json")]
    assert sorted(statuses) == ["completed", "failed", "failed"]


def test_sweep_may_stop_at_the_first_that_fails(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    values = "solver.step_size=-1,0.02,-2"
    outcome = command("-m", values, "keep_going=false", f"hydra.sweep.dir={folder}")
    assert outcome.status == 1
    assert "(keep_going=false)" in outcome.err
    (only,) = [path.parent.name for path in folder.glob("*/result.json")]
    assert "solver.step_size--1" in only
    # Given again without it, the sweep makes what is missing, in the same folders.
    outcome = command("-m", values, f"hydra.sweep.dir={folder}")
    assert len([*folder.glob("*/result.json")]) == 3


def test_setting_that_an_experiment_made_is_not_blamed_on_the_user(
    command: Command, leaves: Path
) -> None:
    (leaves / "experiment").mkdir()
    text = "# @package _global_\nestimator: {steps: 50}\n"
    (leaves / "experiment" / "mine.yaml").write_text(text)
    quick = ["task=tiny", "steps=1", "compile_cache=null"]
    outcome = command("experiment=mine", "estimator=amigo", quick=quick)
    assert outcome.status == 1
    assert "It is experiment=mine that sets estimator.steps" in outcome.err
    outcome = command("estimator=amigo", "+estimator.steps=3", quick=quick)
    assert "It is experiment" not in outcome.err


MISMATCHED = {
    "solver=external": "solver.fn: has no default and must be given: solver.fn=VALUE",
    "estimator=sampled": "estimator=sampled takes some of many inner problems, and task=tiny",
    "solver=coordinate_descent": "coordinate_descent minimises a lasso or elastic net, and task",
    "outer=positive_part": "outer=positive_part makes weights of examples, and the hyperparameters",
    "outer.learning_rate=-1": "outer.learning_rate: expected a number above 0, got -1",
}


@pytest.mark.parametrize("asked", MISMATCHED)
def test_nouns_that_do_not_fit_are_refused(command: Command, asked: str) -> None:
    outcome = command("outer=adam", asked, quick=["task=tiny", "compile_cache=null"])
    assert outcome.status == 1
    assert MISMATCHED[asked] in outcome.err
    assert "Traceback" not in outcome.err


def test_many_inner_problems_need_an_estimator_of_many(command: Command) -> None:
    outcome = command("task=meta", "estimator=forward", quick=["compile_cache=null"])
    assert outcome.status == 1
    assert "task=meta has many inner problems, and estimator=forward is for one" in outcome.err


def test_solver_that_nothing_uses_is_said_once(command: Command, tmp_path: Path) -> None:
    quick = ["task=tiny", "steps=2", "compile_cache=null", "plot=false", "solver=proximal_gradient"]
    folder = tmp_path / "run"
    outcome = command("estimator=amigo", f"hydra.run.dir={folder}", quick=quick)
    assert outcome.out.count("not used        solver=proximal_gradient: estimator=amigo") == 1
    assert "solver" not in result(folder)["choices"]
    folder = tmp_path / "used"
    outcome = command("estimator=implicit", f"hydra.run.dir={folder}", quick=quick)
    assert "not used" not in outcome.out
    assert result(folder)["choices"]["solver"] == "proximal_gradient"


def test_checks_of_an_extended_run_are_those_of_an_uninterrupted_one(
    command: Command, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(f"hydra.run.dir={whole}", "steps=4").status == 0
    assert command(f"hydra.run.dir={parts}", "steps=2").status == 0
    assert command(f"resume={parts}", "steps=4", "compile_cache=null", quick=[]).status == 0
    assert result(parts)["checks"] == result(whole)["checks"]
    assert [check["step"] for check in result(whole)["checks"]] == [0, 3]


def test_going_on_under_other_versions_is_said_and_recorded(
    command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert command(f"hydra.run.dir={folder}", "steps=2").status == 0
    found = result(folder)
    assert "versions_before" not in found
    found["versions"]["jax"] = "0.1"
    (folder / "result.json").write_text(json.dumps(found))
    outcome = command(f"resume={folder}", "steps=3", "compile_cache=null", quick=[])
    assert "(before 0.1): the numbers may differ" in outcome.out
    after = result(folder)
    assert [before["jax"] for before in after["versions_before"]] == ["0.1"]
    assert after["versions"]["jax"] != "0.1"
    outcome = command(f"resume={folder}", "steps=4", "compile_cache=null", quick=[])
    assert "before 0.1" not in outcome.out
    assert len(result(folder)["versions_before"]) == 1


def test_an_interrupted_run_names_a_file_in_brackets(tmp_path: Path) -> None:
    """`trust=[/a/file.py]` is no markup of the console's."""
    again, said = "resume=run 'trust=[/a/file.py]'", io.StringIO()
    with pytest.raises(KeyboardInterrupt), recorded(tmp_path, {}, Console(file=said), again):
        raise KeyboardInterrupt
    assert again in said.getvalue()


AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "jaxlib":
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 0.1)  # a moment for the handler

sys.meta_path.insert(0, Finder())
"""


def test_a_signal_while_jax_is_imported_ends_the_command_at_once(tmp_path: Path) -> None:
    """Extensions make an ImportError of the exception that a handler raises."""
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    line = [sys.executable, "-m", "experiments.run", f"hydra.run.dir={tmp_path / 'run'}"]
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = subprocess.run(
        line, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr == ""
    assert "interrupted" not in done.stdout  # by no exception: JAX might have made another of it
    assert not (tmp_path / "run" / "result.json").exists()
