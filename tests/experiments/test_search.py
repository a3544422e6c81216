"""Optuna over runs: a search that was stopped goes on as if it had not been."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import search
from experiments.common.errors import BadInputError
from experiments.sweeps.search_space import sweeps
from tests.experiments.conftest import LOGGING

optuna = pytest.importorskip("optuna", reason="pip install -e '.[optuna]'")

SPACE = ["+task.start=interval(-6,2)", "solver=choice(sgd,adam)"]
QUICK = [
    *LOGGING,
    "task=tiny",
    "steps=3",
    "every=2",
    "estimator=reverse",
    "estimator.steps=200",
    "solver.batch_size=5",
    "plot=false",
    "compile_cache=null",
    "baselines=false",
    "progress=off",
]


def run(leaves: Path, folder: Path, trials: int, *changes: str) -> int:
    line = ["--trials", str(trials), "--folder", str(folder), "--config-dir", str(leaves)]
    return search.main([*line, *QUICK, *changes])


def trials(folder: Path) -> list[dict[str, Any]]:
    return [
        {"params": trial.params, "value": trial.value}
        for trial in opened(folder).get_trials(deepcopy=False)
    ]


def opened(folder: Path) -> Any:
    """The study in the folder, by Optuna's own means."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "trials.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="search", storage=storage)


@pytest.mark.extended
def test_stopped_search_goes_on_as_if_it_had_not(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(leaves, whole, 4, SPACE[0]) == 0
    out = capsys.readouterr().out
    found = trials(whole)
    best = min(found, key=lambda trial: trial["value"])
    assert f"best of 4 trials (4 completed): {best['value']}" in out
    assert f"+task.start={best['params']['+task.start']}" in out.split("best of")[1]
    for trial in found:
        start = trial["params"]["+task.start"]
        (place,) = whole.glob(f"*start-{start}")
        result = json.loads((place / "result.json").read_text())
        assert result["value"] == trial["value"]
        assert result["value"] < result["value_start"]  # the local search did its work
    assert run(leaves, parts, 2, SPACE[0]) == 0
    # Stopped after the run, before its value was written down.
    journal = parts / "trials.journal"
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines) + last[: len(last) // 2])
    capsys.readouterr()
    assert run(leaves, parts, 4, SPACE[0]) == 0
    assert capsys.readouterr().out.count("finished already") == 1
    assert trials(parts) == found
    assert run(leaves, parts, 4, SPACE[1]) == 1
    assert "holds another search" in capsys.readouterr().err


@pytest.mark.extended
def test_trial_that_fails_stops_no_other(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    space = "solver.step_size=choice(0.02,9.0,-1)"  # good, diverges, refused
    assert run(leaves, tmp_path, 6, space, "--seed", "1") == 0
    values = {trial["params"]["solver.step_size"]: trial["value"] for trial in trials(tmp_path)}
    assert values.pop(0.02) > 0
    assert set(values.values()) == {None}
    assert "best of 6 trials" in capsys.readouterr().out


def test_hydras_words_are_understood() -> None:
    changes = [
        "a=interval(0.1,3)",
        "b.c=tag(log,interval(1e-3,1))",
        "solver=choice(sgd,'adam')",
        "d=range(1,10,2)",
        "e=1,2.5",
        "f=tag(log,int(interval(1,9)))",
        "g=3",
        "+h=choice(true)",
    ]
    fixed, space = sweeps(changes)
    assert fixed == ["g=3"]
    known = optuna.distributions
    assert space == {
        "a": known.FloatDistribution(0.1, 3.0),
        "b.c": known.FloatDistribution(1e-3, 1.0, log=True),
        "solver": known.CategoricalDistribution(["sgd", "adam"]),
        "d": known.IntDistribution(1, 9, step=2),
        "e": known.CategoricalDistribution([1, 2.5]),
        "f": known.IntDistribution(1, 9, log=True),
        "+h": known.CategoricalDistribution([True]),
    }


def test_damaged_journal_is_set_aside_and_the_runs_are_found(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(leaves, tmp_path, 2, SPACE[0]) == 0
    found, journal = trials(tmp_path), tmp_path / "trials.journal"
    journal.write_text("no journal\n" + journal.read_text())
    capsys.readouterr()
    assert run(leaves, tmp_path, 2, SPACE[0]) == 0
    said = capsys.readouterr()
    assert "these are no trials. Set aside as trials.journal.damaged-1" in said.err
    assert said.out.count("finished already") == 2
    assert trials(tmp_path) == found


@pytest.mark.parametrize("change", ["a=[", "a=choice([1],[2])"])
def test_other_words_are_refused(change: str) -> None:
    with pytest.raises(BadInputError, match=r"a=|at input"):
        sweeps([change])


def test_nothing_to_search_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search.main(["--folder", str(tmp_path), "steps=3"]) == 1
    assert "There is nothing to search" in capsys.readouterr().err


@pytest.mark.extended
def test_an_unreliable_trial_has_failed(
    leaves: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two tiny steps: every hypergradient is known to be wrong, and no value is to be believed."""
    wrong = ["estimator.steps=2", "solver.step_size=0.001"]
    quick = [q for q in QUICK if not q.startswith("estimator.steps")]
    line = ["--trials", "2", "--folder", str(tmp_path / "a"), "--config-dir", str(leaves)]
    assert search.main([*line, *quick, *wrong, SPACE[0]]) == 1
    assert "no trial completed: 2 ended unreliable" in capsys.readouterr().err
    states = {trial.state for trial in opened(tmp_path / "a").get_trials(deepcopy=False)}
    assert states == {optuna.trial.TrialState.FAIL}
