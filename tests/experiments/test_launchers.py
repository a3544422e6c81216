"""Launchers start real processes; the table is that of the basic one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.runs.workers import POOLS
from tests.conftest import ROOT
from tests.experiments import fake_slurm

# A task that any process finds, as small as one can be.
QUICK = [
    "task.table.degree=1",
    "task.table.outer=holdout",
    "task.penalty=global",
    "estimator=one_step",
    "steps=2",
    "every=1",
    "estimator.steps=200",
    "max_error=100.0",  # too few steps, and they are not what is tested
    "plot=false",
    "baselines=false",
    "progress=off",
]
EXTRA = {"joblib": "joblib", "submitit": "slurm", "ray": "ray"}


def needs(plugin: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher")
    return pytest.mark.skipif(not found, reason=f"pip install -e '.[{EXTRA[plugin]}]'")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs: made once, by whichever process comes first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By the basic launcher, one after the other."""
    folder = tmp_path_factory.mktemp("basic")
    done = sweep(cache, folder, "seed=0,1")
    assert done.returncode == 0, done.stdout
    return results(folder)


def sweep(
    cache: Path,
    folder: Path,
    *changes: str,
    environment: dict[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "experiments.run", "-m", *QUICK, f"compile_cache={cache}"]
    own = dict(environment or os.environ)
    for name in POOLS:
        own.pop(name, None)  # set for the tests' own workers
    return subprocess.run(
        [*line, f"hydra.sweep.dir={folder}", *changes],
        cwd=ROOT,
        env=own,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )


def results(folder: Path) -> dict[int, dict[str, Any]]:
    """By seed; of folders of runs only."""
    found = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    by_seed = {result["seed"]: result for result in found if "seed" in result}
    assert len(by_seed) == len([result for result in found if "seed" in result])
    return by_seed


def assert_same(found: dict[int, dict[str, Any]], expected: dict[int, dict[str, Any]]) -> None:
    """To the last digit but a few: other numbers of threads may add in another order."""
    assert found.keys() == expected.keys()
    for seed, result in found.items():
        assert result["status"] == "completed"
        assert result["counts"] == expected[seed]["counts"]
        assert result["overrides"] == expected[seed]["overrides"]
        assert result["value"] == pytest.approx(expected[seed]["value"], rel=1e-5)
        assert result["test_metrics"] == pytest.approx(expected[seed]["test_metrics"], rel=1e-5)
        assert result["process"]["pid"] != expected[seed]["process"]["pid"]


@pytest.mark.extended
@needs("joblib")
def test_joblib(cache: Path, expected: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    """A job that fails is recorded, stops no other, and the exit status says so."""
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = sweep(cache, tmp_path, *launcher, "seed=0,abc,1")
    assert done.returncode == 1, done.stdout
    assert "seed: expected an integer, got 'abc'" in done.stdout
    found = results(tmp_path)
    assert_same(found, expected)
    assert all(result["process"]["threads"] == 1 for result in found.values()) or (
        (os.cpu_count() or 1) > 3
    )
    failed = [json.loads(path.read_text()) for path in tmp_path.glob("*abc*/result.json")]
    assert [result["status"] for result in failed] == ["failed"]


@pytest.mark.extended
@needs("submitit")
def test_submitit_with_a_fake_slurm(
    cache: Path, expected: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    fake_slurm.install(tmp_path / "bin")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=2"]
    found_first = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = sweep(cache, tmp_path / "sweep", *launcher, "seed=0,1", environment=found_first)
    assert done.returncode == 0, done.stdout
    found = results(tmp_path / "sweep")
    assert_same(found, expected)
    assert all(result["process"]["threads"] == 2 for result in found.values())


@pytest.mark.slow
@needs("submitit")
def test_submitit_on_this_machine(
    cache: Path, expected: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1"]
    done = sweep(cache, tmp_path, *launcher, "seed=0,1")
    assert done.returncode == 0, done.stdout
    assert_same(results(tmp_path), expected)
