"""Trials that Optuna's pruners end, and processes that share a search."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from experiments import report, search
from experiments.cli.hydra_compat import folder_name
from experiments.common.errors import BadInputError
from experiments.sweeps.study import make_pruner
from tests.conftest import ROOT
from tests.experiments.conftest import LOGGING
from tests.experiments.test_search import QUICK, opened, run

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]'")

STATES = optuna.trial.TrialState
# Good and hopeless starts: penalties of 1e-3, and of 150.
STARTS = "+task.start=choice(-7.0,5.0)"
PRUNED = ["--pruner", "median,n_startup_trials=1", "--seed", "1"]  # draws good, good, hopeless, ...
# A process that knows the task `tiny`.
MAIN = """
import sys
from tests.experiments import tiny; tiny.install()
from experiments.search import main
sys.exit(main())
"""


def results(folder: Path) -> dict[int, dict[str, Any]]:
    """The result of each trial by its number."""
    found = sorted(folder.glob("*/result.json"))
    return {int(path.parent.name[:4]): json.loads(path.read_text()) for path in found}


def test_a_pruned_trial_is_told_what_its_run_recorded_and_is_neither_best_nor_failed(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A value at a checkpoint is behind the median of the others at that step, by NumPy."""
    folder = tmp_path / "search"
    assert run(leaves, folder, 6, STARTS, *PRUNED, "steps=6", "tol=null", "max_error=null") == 0
    out = capsys.readouterr().out
    trials = opened(folder).get_trials(deepcopy=False)
    made = results(folder)
    pruned = [trial for trial in trials if trial.state == STATES.PRUNED]
    assert pruned
    assert f"({len(trials) - len(pruned)} completed, {len(pruned)} pruned)" in out
    for trial in trials:
        result = made[trial.number]
        (place,) = folder.glob(f"{trial.number:04d}*")
        history = pyarrow.parquet.read_table(place / "history.parquet")
        values = history.column("best" if "best" in history.column_names else "value").to_numpy()
        assert trial.intermediate_values == {
            step: pytest.approx(values[step - 1], rel=1e-6) for step in trial.intermediate_values
        }
        last = max(trial.intermediate_values)
        others = [t.intermediate_values for t in trials[: trial.number] if t.state != STATES.PRUNED]
        told = [values[last] for values in others if last in values]
        behind = bool(told) and min(trial.intermediate_values.values()) > np.median(told)
        assert behind == (trial.state == STATES.PRUNED)
        if trial.state == STATES.PRUNED:
            assert result["status"] == "pruned"
            assert result["steps"] == last < 6
            assert "pruner" in result["message"]
            assert not (place / "model").exists()
        else:
            assert result["status"] == "completed"
            assert result["steps"] == 6
    assert report.main([str(folder), "--no-page"]) == 0
    lines = (folder / "report.csv").read_text().splitlines()
    assert sum(line.endswith(f"{len(pruned)} pruned") for line in lines) == 1  # one start, one row
    assert "best" not in next(line for line in lines if line.endswith("pruned"))
    # Outside the search the run goes on to its end.
    (place,) = folder.glob(f"{pruned[0].number:04d}*")
    capsys.readouterr()
    line = ["--config-dir", str(leaves), *LOGGING, f"resume={place}", "progress=off"]
    assert search._run(line) == 0
    assert json.loads((place / "result.json").read_text())["status"] == "completed"


def test_a_search_killed_before_a_pruned_trial_was_told_tells_it(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = [
        STARTS,
        "--pruner",
        "median,n_startup_trials=1",
        "--seed",
        "1",
        "max_error=null",
        "tol=null",
    ]
    assert run(leaves, tmp_path, 6, *whole) == 0
    states = [trial.state for trial in opened(tmp_path).get_trials()]
    last = max(i for i, state in enumerate(states) if state == STATES.PRUNED)
    journal = tmp_path / "trials.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    # The line that ends this trial, and all after it.
    ends = [i for i, line in enumerate(lines) if json.loads(line).get("state") == STATES.PRUNED]
    journal.write_bytes(b"".join(lines[: ends[-1]]))
    capsys.readouterr()
    assert run(leaves, tmp_path, last + 1, *whole) == 0
    assert " steps\n" not in capsys.readouterr().out  # no run was made
    assert [trial.state for trial in opened(tmp_path).get_trials()] == states[: last + 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nope", "expected one of none, median"),
        ("median,n_startup=1", "n_startup_trials"),
        ("percentile", "percentile"),
        ("median,n_startup_trials=-1", "n_startup_trials"),
    ],
)
def test_other_pruners_are_refused_with_a_sentence(text: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        make_pruner(text)


@pytest.mark.parametrize("name", ["none", "median", "successive_halving", "hyperband"])
def test_every_pruner_makes_a_search(leaves: Path, tmp_path: Path, name: str) -> None:
    assert run(leaves, tmp_path, 2, STARTS, "--pruner", name, "max_error=null") == 0


class Shared:
    """One search by processes of their own."""

    def __init__(self, leaves: Path, folder: Path, trials: int, *changes: str) -> None:
        cache = leaves.parent / "cache"
        quick = [each for each in QUICK if not each.startswith("compile_cache")]
        self.folder = folder
        self.line = [sys.executable, "-c", MAIN, "--trials", str(trials), "--folder", str(folder)]
        self.line += ["--config-dir", str(leaves), *quick, f"compile_cache={cache}", *changes]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


LONG = ["+task.start=interval(-6,2)", "steps=40", "every=1", "max_error=null", "tol=null"]


@pytest.mark.extended
@pytest.mark.timeout(300)
def test_a_killed_worker_loses_no_trial_to_those_that_live(leaves: Path, tmp_path: Path) -> None:
    """Two processes; one is killed within a trial. The other takes that up and ends the search."""
    shared = Shared(leaves, tmp_path / "search", 6, *LONG)
    first, second = shared.start(), shared.start()
    try:
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, "no two trials at once"
            made = [json.loads(p.read_text()) for p in shared.folder.glob("*/result.json")]
            if sum(result["status"] == "running" for result in made) == 2:
                break
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        killed, _ = first.communicate(timeout=60)
        out, _ = second.communicate(timeout=240)
    finally:
        first.kill()
        second.kill()
    assert second.returncode == 0, out
    trials = opened(shared.folder).get_trials()
    assert [trial.state for trial in trials] == [STATES.COMPLETE] * 6
    made = results(shared.folder)
    assert sorted(made) == list(range(6))
    for trial in trials:
        result = made[trial.number]
        assert result["status"] == "completed"
        assert result["steps"] == 40
        assert trial.value == result["value"]
        changed = f"{trial.number:04d},+task.start={trial.params['+task.start']}"
        assert (shared.folder / folder_name(changed)).is_dir()
    # Every trial was ended once: a summary each, over both processes.
    assert (killed + out).count(" in 40 steps") == 6
    assert "best of 6 trials (6 completed)" in out


@pytest.mark.extended
@pytest.mark.timeout(300)
def test_workers_share_the_trials(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "experiments.search", "--trials", "4", "--workers", "2"]
    line += ["--folder", str(tmp_path / "search"), "experiment=ridge_quick", "steps=2"]
    line += ["plot=false", "baselines=false", "progress=off", f"compile_cache={tmp_path / 'cache'}"]
    line += ["task.start=tag(log,interval(1e-3,1))", "max_error=null"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best of 4 trials (4 completed)") == 2  # each says so in the end
    assert {r["status"] for r in results(tmp_path / "search").values()} == {"completed"}
    assert len(results(tmp_path / "search")) == 4
    assert len({r["process"]["pid"] for r in results(tmp_path / "search").values()}) == 2
