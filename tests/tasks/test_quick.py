"""Every experiment called `*_quick`, through the command line's own job, in this process."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cli import hydra_compat
from experiments.cli.settings import NODES, check, defaults
from experiments.runs.session import perform
from tests.conftest import ROOT

CONF = ROOT / "conf"
QUICK = sorted(path.stem for path in (CONF / "experiment").glob("*_quick.yaml"))
# What a test needs none of: the picture, a cache between processes, lines of progress.
WITHOUT = ["plot=false", "compile_cache=null", "progress=off"]


# One whole experiment at every change, the shortest.
SHORTEST = "custom_quick"


@pytest.mark.parametrize(
    "name",
    [
        name if name == SHORTEST else pytest.param(name, marks=pytest.mark.extended)
        for name in QUICK
    ],
)
def test_quick_experiment_is_completed_and_compared(name: str, tmp_path: Path) -> None:
    composed = hydra_compat.compose([f"experiment={name}", *WITHOUT], with_hydra=True)
    choices = {node: composed.hydra.runtime.choices[node] for node in NODES}
    del composed.hydra
    settings = hydra_compat.plain(composed)
    check(settings, defaults(choices, [CONF]))
    shown = io.StringIO()
    facts = {"choices": choices, "overrides": []}
    result = perform(settings, tmp_path, facts, Console(file=shown, width=300))
    assert result["status"] == "completed", result["message"]
    assert result["steps"] == settings["steps"]
    headline = next(iter(result["test_metrics"]))
    assert result["baselines"], "a task names what a user would run otherwise"
    for method, metrics in result["baselines"].items():
        assert headline in metrics, method
        assert method in shown.getvalue()
    assert (tmp_path / "result.json").is_file()


def test_there_are_quick_experiments() -> None:
    assert {"ridge_quick", "logistic_quick", SHORTEST} <= set(QUICK)
