"""`vmap`: one compiled program gives the table of a sweep that makes one run after the other."""

import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import report
from experiments.storage import checkpoint
from experiments.sweeps.vmapped import shown
from tests.compiling import compilations
from tests.experiments.conftest import Command
from tests.marks import quick_cases

CLOCKS = {"seconds", "compile_seconds", "process", "versions"}
ROUNDED = {"mean", "95 %", "value"}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/result.json")}


def table(folder: Path) -> list[dict[str, str]]:
    assert report.main([str(folder), "--no-page"]) == 0
    with (folder / "report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """The same up to rounding, whatever it is."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_close(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{i}]")
    elif isinstance(one, float):
        # `checks` hold differences of numbers that agree to rounding.
        loose = 1e-6 if ".checks" in where else 1e-10
        np.testing.assert_allclose(one, other, rtol=loose, atol=loose, err_msg=where)
    else:
        assert one == other, where


def assert_same(one: Path, other: Path) -> None:
    a, b = results(one), results(other)
    assert a.keys() == b.keys()
    for name, result in a.items():
        for clock in CLOCKS:
            result.pop(clock), b[name].pop(clock)
        for own in (result, b[name]):
            own["overrides"].sort()  # in the order of the command line
            del own["command"]
        assert_close(result, b[name], name)
        states = [checkpoint.load(x / name / checkpoint.PLACE) for x in (one, other)]
        assert states[0].state.keys() == states[1].state.keys()
        for address, array in states[0].state.items():
            assert (array.dtype, array.shape) == (
                states[1].state[address].dtype,
                states[1].state[address].shape,
            ), address
        rows = [state.history for state in states]
        assert rows[0].keys() == rows[1].keys()
        for column in rows[0]:
            np.testing.assert_allclose(rows[0][column], rows[1][column], rtol=1e-9, atol=1e-12)
    for x, y in zip(table(one), table(other), strict=True):
        skipped = {"MiB"} | CLOCKS | ROUNDED
        assert {k: v for k, v in x.items() if k not in skipped} == {
            k: v for k, v in y.items() if k not in skipped
        }
        assert float(x["mean"]) == pytest.approx(float(y["mean"]), rel=1e-9, nan_ok=True)


@pytest.mark.extended
def test_seeds_and_settings_give_the_table_of_a_sweep(command: Command, tmp_path: Path) -> None:
    """Four runs; among them one that diverges, with the same message."""
    one, other = tmp_path / "one", tmp_path / "other"
    wide = ["precision=float64", "steps=6"]
    with compilations() as count:
        outcome = command(
            f"hydra.run.dir={one}", *wide, "vmap.seeds=2", "+vmap.solver.step_size=[0.02,9.0]"
        )
    together = int(count)
    assert outcome.status == 2, outcome.err
    assert "4 runs in one program" in outcome.out
    jax.clear_caches()
    sweep = ["-m", f"hydra.sweep.dir={other}", *wide, "seed=0,1", "solver.step_size=0.02,9.0"]
    assert command(*sweep).status == 2
    assert_same(one, other)
    statuses = sorted(result["status"] for result in results(one).values())
    assert statuses == ["completed", "completed", "diverged", "diverged"]
    # Either finds what the other has done.
    sweep[1] = f"hydra.sweep.dir={one}"
    again = command(*sweep)
    assert again.out.count("finished already") == 2
    assert again.out.count("diverged already") == 2
    assert together < 150


def test_a_trial_taken_back_is_no_part_of_the_mean() -> None:
    value = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan], [9.0, 9.0, 9.0]])
    history = {"value": value, "inner_residual": np.where(np.isnan(value), np.inf, value)}
    for means in shown(history | {"hyper": np.zeros((3, 3, 2))}, [0, 1]).values():
        np.testing.assert_array_equal(means, [2.0, 2.0, np.nan])


@pytest.mark.extended
def test_stopped_group_goes_on(command: Command, tmp_path: Path, monkeypatch: Any) -> None:
    """From its one checkpoint, and to more steps; a lane is a run that can be resumed alone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wide = ["precision=float64", "vmap.seeds=2"]
    assert command(f"hydra.run.dir={whole}", *wide, "steps=7").status == 0
    import experiments.sweeps.vmapped as module

    save, calls = module._save, []

    def dies(*arguments: Any) -> None:
        save(*arguments)
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", dies)
    assert command(f"hydra.run.dir={parts}", *wide, "steps=7").status == 130
    assert results(parts) == {}
    monkeypatch.setattr(module, "_save", save)
    outcome = command(f"hydra.run.dir={parts}", *wide, "steps=7")
    assert outcome.status == 0
    assert "2 runs in one program, 3 steps done" in outcome.out
    assert_same(whole, parts)
    outcome = command(f"hydra.run.dir={parts}", *wide, "steps=7")
    assert "finished already, all of them" in outcome.out
    outcome = command(f"resume={parts}", quick=[])
    assert outcome.status == 1
    assert "this folder holds many runs. Give the command that began them again" in outcome.err
    lane = next(parts.glob("*seed-1*"))
    assert command(f"resume={lane}", "steps=9", quick=[]).status == 0
    assert json.loads((lane / "result.json").read_text())["steps"] == 9


@quick_cases(
    2,
    ("changes", "words"),
    [
        (["vmap.seeds=0"], "vmap.seeds: expected an integer of at least 1, got 0"),
        (["+vmap.solver.step_size=0.1"], "vmap.solver.step_size: expected a list of values"),
        (["+vmap.solver.stepsize=[0.1]"], "there is no setting solver.stepsize"),
        (["+vmap.solver.step_size=[a]"], "solver.step_size: expected a number, got 'a'"),
        (["+vmap.estimator.steps=[3,4]"], "vmap: the runs are not the same program"),
        (["+vmap.task.n=[20,21]"], "vmap: the runs are not the same program"),
    ],
)
def test_refusals(command: Command, tmp_path: Path, changes: list[str], words: str) -> None:
    outcome = command(f"hydra.run.dir={tmp_path / 'a'}", *changes)
    assert outcome.status == 1
    assert words in outcome.err
