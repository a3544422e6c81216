"""A run that was stopped goes on bit for bit, through the disk; what is no such run is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.storage import checkpoint
from experiments.storage.lock import held
from tests.conftest import ROOT
from tests.experiments.conftest import Command

SOLVERS = {
    "sgd": [],  # a permutation and a position in the state
    "adam": ["solver=adam", "estimator=reverse"],  # optax's state and a count
    "implicit": ["estimator=implicit", "precision=float64", "outer=momentum"],  # an adjoint
}


def saved(folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(folder / checkpoint.PLACE)


def assert_same(one: Path, other: Path) -> None:
    a, b = saved(one), saved(other)
    assert a.state.keys() == b.state.keys()
    for name in a.state:
        np.testing.assert_array_equal(a.state[name], b.state[name], err_msg=name)
    assert a.history.keys() == b.history.keys()
    for name in a.history:
        np.testing.assert_array_equal(a.history[name], b.history[name], err_msg=name)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    same = {"value_start", "value", "test_metrics", "counts", "hyper_summary", "evidence", "steps"}
    assert {k: results[0][k] for k in same} == {k: results[1][k] for k in same}


@pytest.mark.extended
@pytest.mark.parametrize("changes", SOLVERS.values(), ids=SOLVERS)
def test_resumed_run_equals_an_uninterrupted_one(
    command: Command, tmp_path: Path, changes: list[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(f"hydra.run.dir={whole}", *changes, "steps=7").status == 0
    assert command(f"hydra.run.dir={parts}", *changes, "steps=3").status == 0
    outcome = command(f"resume={parts}", "steps=7", quick=[])
    assert outcome.status == 0, outcome.err
    assert "going on after 3 of 7 outer steps" in outcome.out
    assert saved(parts).history["value"].shape == (7,)
    assert_same(whole, parts)


@pytest.mark.extended
def test_killed_run_goes_on_bit_for_bit(command: Command, leaves: Path, tmp_path: Path) -> None:
    """Through another process, which dies without a chance to tidy up."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    quick = [
        "task=tiny",
        "every=2",
        "solver.batch_size=5",
        "plot=false",
        "compile_cache=null",
        "estimator.steps=200",
    ]
    code = (
        "import sys\n"
        "from tests.experiments import tiny; tiny.install()\n"
        "from experiments.run import main\n"
        "sys.argv = ['run', *sys.argv[1:]]\n"
        "main()"
    )
    line = [sys.executable, "-c", code, "--config-dir", str(leaves), f"hydra.run.dir={killed}"]
    with subprocess.Popen([*line, *quick, "steps=100000"], cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 120
            while not (killed / checkpoint.PLACE).is_file():
                assert process.poll() is None, "the run ended before its first checkpoint"
                assert time.monotonic() < deadline, "no checkpoint"
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    done = int(saved(killed).state["[0].step"])
    assert json.loads((killed / "result.json").read_text())["status"] == "running"
    assert command(f"resume={killed}", f"steps={done + 4}", quick=[]).status == 0
    assert command(f"hydra.run.dir={whole}", f"steps={done + 4}", *quick, quick=[]).status == 0
    assert_same(killed, whole)


def test_run_stopped_after_its_last_step_only_concludes(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 0
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    outcome = command(f"resume={folder}", quick=[])
    assert outcome.status == 0
    again = json.loads((folder / "result.json").read_text())
    same = result.keys() - {"choices", "overrides", "command", "settings", "process"}
    assert {name: again[name] for name in same} == {name: result[name] for name in same}


def test_diverged_run_stays_diverged(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}", "solver.step_size=9.0").status == 2
    outcome = command(f"resume={folder}", quick=[])
    assert outcome.status == 2
    assert "step size" in outcome.out


def test_finished_run_says_so(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 0
    before = (folder / "result.json").read_bytes()
    outcome = command(f"resume={folder}", quick=[])
    assert outcome.status == 0
    assert "finished already: 5 outer steps" in outcome.out
    assert (folder / "result.json").read_bytes() == before


def test_other_settings_are_refused_and_change_nothing(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 0
    before = (folder / "result.json").read_bytes()
    outcome = command(f"resume={folder}", "seed=1", quick=[])
    assert outcome.status == 1
    assert "seed: a run goes on with its saved settings" in outcome.err
    outcome = command(f"hydra.run.dir={folder}", "solver.step_size=0.3", "steps=6")
    assert outcome.status == 1
    assert "solver.step_size={'_target_': 'bilevel.Relative'}, not 0.3" in outcome.err
    assert (folder / "result.json").read_bytes() == before
    # The refused start has left its own composed configuration; the run still knows its settings.
    assert command(f"resume={folder}", "steps=6", quick=[]).status == 0


def test_folder_without_a_run_is_refused(command: Command, tmp_path: Path) -> None:
    outcome = command(f"resume={tmp_path / 'nothing'}", quick=[])
    assert outcome.status == 1
    assert "no run was started in this folder" in outcome.err
    assert not (tmp_path / "nothing").exists()


def test_damaged_checkpoint_is_named_and_set_aside(command: Command, tmp_path: Path) -> None:
    """The run then starts from its first step: the same numbers again."""
    folder, whole = tmp_path / "a", tmp_path / "whole"
    assert command(f"hydra.run.dir={folder}").status == 0
    assert command(f"hydra.run.dir={whole}", "steps=7").status == 0
    path = folder / checkpoint.PLACE
    path.write_bytes(damaged := path.read_bytes()[:-100])
    outcome = command(f"resume={folder}", "steps=7", quick=[])
    assert outcome.status == 0
    assert f"{path}: this checkpoint is damaged" in outcome.err
    assert path.with_name("state.npz.damaged-1").read_bytes() == damaged
    assert_same(folder, whole)


def test_damaged_result_is_named_and_set_aside(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 0
    path = folder / "result.json"
    before = json.loads(path.read_text())
    # What else is no result: test_odd_results.py.
    contents = (b'{"status": "compl', b'{"status": "completed"}')
    for number, content in enumerate(contents, start=1):
        path.write_bytes(content)
        outcome = command(f"hydra.run.dir={folder}")
        assert outcome.status == 0
        assert f"{path}: this is no" in outcome.err
        assert path.with_name(f"result.json.damaged-{number}").read_bytes() == content
        again = json.loads(path.read_text())
        assert {**again, "process": None} == {**before, "process": None}  # its memory has grown


def test_half_written_configuration_is_named(command: Command, tmp_path: Path) -> None:
    """Of a run that was killed before anything else was written."""
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}").status == 0
    (folder / "result.json").unlink()
    path = folder / ".hydra" / "config.yaml"
    whole = path.read_text()
    for cut in (20, 150, 200, 500):
        path.write_text(whole[:-cut])
        outcome = command(f"resume={folder}", quick=[])
        assert outcome.status == 1
        assert "config.yaml: half written or of another version: " in outcome.err


def test_folder_of_a_living_process_is_left_alone(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with held(folder):
        outcome = command(f"hydra.run.dir={folder}")
        assert outcome.status == 3
        assert f"a: process {os.getpid()} on " in outcome.err
        assert not (folder / "result.json").exists()
    (folder / "checkpoint").mkdir()
    half = [folder / ".result.json.1.part", folder / "checkpoint" / ".state.npz.1.part"]
    for path in half:
        path.touch()
    assert command(f"hydra.run.dir={folder}").status == 0
    assert not any(path.exists() for path in half)


def test_run_interrupted_before_its_first_checkpoint_starts_anew(
    command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    assert command(f"hydra.run.dir={folder}", "solver.step_size=0.1").status == 0
    for path in (folder / checkpoint.PLACE, folder / "result.json"):
        path.unlink()
    assert command(f"resume={folder}", quick=[]).status == 0
    result = json.loads((folder / "result.json").read_text())
    assert (result["settings"]["solver"]["step_size"], result["steps"]) == (0.1, 5)
