"""`mesh.data=4`: the numbers of one device, a quarter of its memory; two processes on loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from tests.conftest import ROOT
from tests.experiments.conftest import LOGGING, Command

SETTINGS = [
    "task=tiny",
    "task.n=24",
    "steps=5",
    "every=2",
    "estimator.steps=200",
    "solver.step_size=0.1",
    "plot=false",
    "precision=float64",
    "compile_cache=null",
]
MINIBATCHES = ["solver.batch_size=8"]
FULL = ["estimator=implicit", "solver.batch_size=null", "solver.momentum=0.5", "solver=momentum"]


def start(leaves: Path, devices: int, *parts: str, **more: str) -> subprocess.Popen[str]:
    """`meshed` in a process that has so many devices; proxies are no way to a neighbour."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    common = ["--config-dir", str(leaves), *LOGGING, *SETTINGS]
    words = [p if p.startswith("once") else " ".join(["run", *common, p]) for p in parts]
    line = [sys.executable, "-m", "tests.experiments.meshed", *" + ".join(words).split()]
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env=kept | {"XLA_FLAGS": flags} | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(*processes: subprocess.Popen[str]) -> tuple[list[list[dict[str, Any]]], str]:
    """The JSON lines that each printed, and the last one's stderr; none is left behind."""
    said = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
            said.append([json.loads(line) for line in out.splitlines() if line.startswith("{")])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return said, err


def numbers(folder: Path) -> tuple[dict[str, Any], pandas.DataFrame]:
    result = json.loads((folder / "result.json").read_text())
    table = pandas.read_parquet(folder / "history.parquet")
    return {name: result[name] for name in ("value", "test_metrics", "counts", "checks")}, table


def assert_close(one: Path, other: Path) -> None:
    """To rounding: sums over rows are taken in another order."""
    (a, rows), (b, others) = numbers(one), numbers(other)
    assert list(rows) == list(others)
    np.testing.assert_allclose(rows, others, rtol=1e-9, atol=1e-12)
    assert a["counts"] == b["counts"]
    assert a["test_metrics"]["mse"] == pytest.approx(b["test_metrics"]["mse"], rel=1e-10)
    assert a["checks"][-1]["grad_error"] == pytest.approx(b["checks"][-1]["grad_error"], rel=1e-6)


def at(folder: Path, *changes: str) -> str:
    return " ".join([f"hydra.run.dir={folder}", *changes])


@pytest.mark.extended
def test_four_devices_share_rows_memory_and_work(leaves: Path, tmp_path: Path) -> None:
    odd, many = at(tmp_path, "mesh.data=4", "task.n=23"), at(tmp_path, "mesh.data=5")
    ((one, four, *refused),), err = ended(start(leaves, 4, "once 1", "once 4", odd, many))
    assert four["value"] == pytest.approx(one["value"], rel=1e-5)  # float32
    np.testing.assert_allclose(four["grad"], one["grad"], rtol=1e-4, atol=1e-7)
    # 2^14 rows of 4 numbers at both levels, and next to nothing else.
    assert one["arguments"] == pytest.approx(2 * 2**14 * 4 * 4, rel=0.01)
    assert four["arguments"] == pytest.approx(one["arguments"] / 4, rel=0.01)
    assert one["temporary"] > 2**14
    assert four["temporary"] < 0.4 * one["temporary"]  # a few thousand numbers are not shared
    assert four["operations"] < 0.3 * one["operations"]
    assert [entry["status"] for entry in refused] == [1, 1]
    assert "neither the 23 inner nor the 23 outer rows are a multiple of 4" in err
    assert "mesh.data=5: there are 4 devices (cpu) of 1 processes" in err


@pytest.mark.slow
def test_four_devices_give_the_run_of_one(command: Command, leaves: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    process = start(
        leaves,
        4,
        at(tmp_path / "drawn", "mesh.data=4", *MINIBATCHES),
        at(tmp_path / "full", "mesh.data=4", *FULL),
        at(cut, "mesh.data=4", "steps=3", *MINIBATCHES),
        at(cut, "mesh.data=4", *MINIBATCHES),
    )
    for name, changes in (("drawn", MINIBATCHES), ("full", FULL)):
        line = [*SETTINGS, *changes, f"hydra.run.dir={tmp_path / name}-alone"]
        assert command(*line, quick=[]).status == 0
    (said,), _ = ended(process)
    assert said == [{"status": 0}] * 4
    for name in ("drawn", "full"):
        assert_close(tmp_path / name, tmp_path / f"{name}-alone")
    notes = json.loads((tmp_path / "drawn" / "result.json").read_text())["notes"]
    assert notes["mesh"] == {"devices": 4, "whole on each": []}
    # Stopped and gone on with: bit for bit.
    assert numbers(cut)[0]["test_metrics"] == numbers(tmp_path / "drawn")[0]["test_metrics"]
    pandas.testing.assert_frame_equal(numbers(cut)[1], numbers(tmp_path / "drawn")[1])


@pytest.mark.slow
def test_two_processes_on_loopback(command: Command, leaves: Path, tmp_path: Path) -> None:
    """Two devices each; the first writes, the second leaves nothing, also after a resume."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    known = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    line = ["mesh.data=4", "mesh.hosts=true", *MINIBATCHES]
    parts = [at(tmp_path / "both", *line, f"steps={steps}") for steps in (3, 5)]
    both = [start(leaves, 2, *parts, JAX_PROCESS_ID=str(i), **known) for i in range(2)]
    said, _ = ended(*both)
    assert said == [[{"status": 0}] * 2] * 2
    alone = [f"hydra.run.dir={tmp_path / 'alone'}"]
    assert command(*SETTINGS, *MINIBATCHES, *alone, quick=[]).status == 0
    assert_close(tmp_path / "both", tmp_path / "alone")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["mesh.data=0"], "mesh.data: expected an integer of at least 1 or null, got 0"),
        (["mesh.data=true"], "mesh.data: expected an integer of at least 1 or null, got True"),
        (["mesh.hosts=true"], "mesh.hosts: all of their devices take part; say how many"),
        (["mesh.data=1", "vmap.seeds=2"], "one program holds many runs or one run many devices"),
        (["mesh.data=64"], "mesh.data=64: there are"),
    ],
)
def test_refusals(command: Command, changes: list[str], words: str) -> None:
    outcome = command(*changes)
    assert outcome.status == 1
    assert words in outcome.err
