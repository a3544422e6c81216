"""Real processes, killed with SIGKILL at random moments: nothing is lost, nothing done twice."""

import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from experiments import report
from experiments.common.errors import BadInputError
from experiments.storage import checkpoint
from tests.conftest import ROOT

# Another process knows the task `tiny` only after this.
MAIN = """
import sys
from tests.experiments import tiny; tiny.install()
from experiments.run import main
sys.argv = ['run', *sys.argv[1:]]
sys.exit(main())
"""
QUICK = [
    "task=tiny",
    "solver.batch_size=5",
    "estimator.steps=200",
    "plot=false",
    "progress=off",
    "every=1",
    "baselines=false",
    "outer=adam",
    "outer.learning_rate=0.005",
    "max_error=null",  # few steps for a gradient that nearly vanishes: not what is tested
]
# `versions` holds the commit, which may change while a test runs.
CLOCKS = {"seconds", "compile_seconds", "process", "versions", "versions_before"}


class Sweep:
    """A sweep over seeds and one more setting, run by processes that may be killed."""

    def __init__(self, leaves: Path, folder: Path, *changes: str) -> None:
        self.folder = folder
        cache = leaves.parent / "cache"
        self.line = [sys.executable, "-c", MAIN, "-m", "--config-dir", str(leaves)]
        self.line += [*QUICK, f"hydra.sweep.dir={folder}", f"compile_cache={cache}", *changes]

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen]:
        with subprocess.Popen(
            self.line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def finish(self) -> str:
        with self.started() as process:
            out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        return out

    def kill_after(self, seconds: float) -> bool:
        """Kill it so long after it has begun to work; whether it was still alive."""
        before = self.written()
        with self.started() as process:
            deadline = time.monotonic() + 120
            while self.written() == before and process.poll() is None:
                assert time.monotonic() < deadline, "it does nothing"
                time.sleep(0.01)
            time.sleep(seconds)
            alive = process.poll() is None
        return alive

    def written(self) -> set[tuple[Path, int]]:
        """Checkpoints and results, with the times at which they were put in place."""
        found = set()
        for name in ("state.npz", "result.json"):
            for path in self.folder.rglob(name):
                found.add((path, path.stat().st_mtime_ns))
        return found

    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.rglob("result.json"))

    def steps(self) -> int:
        """Of all checkpoints together; each must be whole."""
        paths = list(self.folder.rglob("state.npz"))
        return sum(len(checkpoint.load(path).history["value"]) for path in paths)

    def table(self) -> list[dict[str, str]]:
        """What `report` makes of it, without the time."""
        assert report.main([str(self.folder), "--no-page"]) == 0
        with (self.folder / "report.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if k not in CLOCKS | {"MiB"}} for row in rows]


def assert_same(one: Sweep, other: Sweep) -> None:
    """Folder by folder, bit for bit, all but the clocks."""
    names = [run.name for run in one.runs()]
    assert names == [run.name for run in other.runs()]
    for name in names:
        a, b = one.folder / name, other.folder / name
        results: list[dict[str, Any]] = [
            json.loads((x / "result.json").read_text()) for x in (a, b)
        ]
        names_of = (results[0].keys() | results[1].keys()) - CLOCKS
        differ = {k for k in names_of if results[0].get(k, ...) != results[1].get(k, ...)}
        assert not differ, f"{b}: {differ}"
        states = [checkpoint.load(x / checkpoint.PLACE) for x in (a, b)]
        for left, right in zip(states[0].state.items(), states[1].state.items(), strict=True):
            assert left[0] == right[0]
            np.testing.assert_array_equal(left[1], right[1], err_msg=left[0])
        histories = [pyarrow.parquet.read_table(x / "history.parquet") for x in (a, b)]
        assert histories[0].equals(histories[1])
        steps = histories[0].column("step").to_pylist()
        assert steps == list(range(results[0]["steps"]))  # no row is lost or doubled
        left_over = [p.name for x in (a, b) for p in x.rglob("*") if p.name.endswith(".part")]
        assert left_over == []
    assert one.table() == other.table()


def kill_and_compare(whole: Sweep, killed: Sweep, kills: int, longest: float) -> None:
    """`kills` deaths of living processes, then to the end."""
    draws = random.Random(0)
    deaths, before = 0, 0
    while deaths < kills:
        deaths += killed.kill_after(draws.uniform(0, longest))
        now = killed.steps()
        assert now >= before, "steps were lost"
        before = now
    assert any(
        json.loads((run / "result.json").read_text())["status"] == "running"
        for run in killed.runs()
    ), "every kill came too late: more steps are needed"
    killed.finish()
    assert whole.finish().count("finished already") == 0
    assert_same(whole, killed)
    times = killed.written()
    assert killed.finish().count("finished already") == len(killed.runs())
    assert killed.written() == times


@pytest.mark.extended
def test_killed_sweep_gives_the_same_table(leaves: Path, tmp_path: Path) -> None:
    settings = ["seed=0,1", "steps=150"]
    whole, killed = (Sweep(leaves, tmp_path / name, *settings) for name in ("whole", "killed"))
    kill_and_compare(whole, killed, kills=1, longest=0.5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sweep_killed_twenty_times_gives_the_same_table(leaves: Path, tmp_path: Path) -> None:
    settings = ["seed=0,1", "solver.sampling=iid,epoch", "steps=400"]
    whole, killed = (Sweep(leaves, tmp_path / name, *settings) for name in ("whole", "killed"))
    kill_and_compare(whole, killed, kills=20, longest=1.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_sweeps_on_one_folder_share_the_work(leaves: Path, tmp_path: Path) -> None:
    """Each leaves alone what the other is doing; together they do every run once."""
    settings = ["seed=0,1,2,3", "steps=100"]
    whole, shared = (Sweep(leaves, tmp_path / name, *settings) for name in ("whole", "shared"))
    with shared.started() as first, shared.started() as second:
        outs = [process.communicate(timeout=600)[0] for process in (first, second)]
    assert {first.returncode, second.returncode} <= {0, 3}, outs
    outs.append(shared.finish())
    whole.finish()
    assert_same(whole, shared)
    assert sum(out.count("in 100 steps") for out in outs) == 4  # once per summary of a run


def test_report_names_a_damaged_result(leaves: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text('{"status": "completed", "choices": {}}')
    with pytest.raises(BadInputError, match=r"a/result\.json: this is no result of a run"):
        report.read(tmp_path)
