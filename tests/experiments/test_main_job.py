"""The experiments that are shipped run, cut short, on their real data."""

import json
from pathlib import Path

import pytest

from tests.experiments.conftest import Command

pytestmark = pytest.mark.extended

SHORT = ["steps=2", "compile_cache=null", "plot=false"]


def test_main_job(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    outcome = command(
        "experiment=main", "estimator.steps=1000", f"hydra.run.dir={folder}", quick=SHORT
    )
    assert outcome.status == 0, outcome.err
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    assert any("RidgeCV" in name for name in result["baselines"])
    assert result["baselines"].keys() & {line.split("│")[1].strip() for line in _rows(outcome.out)}
    assert [check["step"] for check in result["checks"]] == [0, 1]


def test_sweep_over_estimators(command: Command, tmp_path: Path) -> None:
    """`experiment=estimators` sweeps by itself; two of its estimators, one seed."""
    changes = ["estimator=implicit,closed_form", "seed=0", f"hydra.sweep.dir={tmp_path / 's'}"]
    outcome = command("experiment=estimators", *changes, quick=[*SHORT, "baselines=false"])
    assert outcome.status == 0, outcome.err
    results = [json.loads(p.read_text()) for p in (tmp_path / "s").glob("*/result.json")]
    values = {result["choices"]["estimator"]: result["value"] for result in results}
    assert values.keys() == {"implicit", "closed_form"}
    # SGD's averaged iterate is close to the minimiser that the closed form finds.
    assert values["implicit"] == pytest.approx(values["closed_form"], rel=0.05)


def _rows(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("│")]
