"""The command line in this process, on a task of milliseconds."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra

from experiments import run as command_line
from tests.experiments import tiny


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str


# Hydra's logging would close the streams that pytest captures: absl's handler holds one of them.
LOGGING = ("hydra/hydra_logging=none",)
Command = Callable[..., Outcome]


@pytest.fixture
def leaves(tmp_path: Path) -> Path:
    """A configuration folder with the leaf task=tiny."""
    tiny.install()
    folder = tmp_path / "conf" / "task"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(tiny.LEAF)
    return folder.parent


@pytest.fixture
def command(
    leaves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Iterator[Command]:
    """Run `python -m experiments.run` with these arguments; quick settings for the tiny task."""
    monkeypatch.chdir(tmp_path)
    quick = [
        "task=tiny",
        "steps=5",
        "every=2",
        "estimator.steps=200",
        "solver.batch_size=5",
        "plot=false",
        "compile_cache=null",
    ]

    def run(*arguments: str, quick: list[str] = quick) -> Outcome:
        flags = [argument for argument in arguments if argument.startswith("-")]
        changes = [argument for argument in arguments if argument not in flags]
        line = ["run", *flags, "--config-dir", str(leaves), *LOGGING, *quick, *changes]
        monkeypatch.setattr(sys, "argv", line)
        status = command_line.main()
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    look = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        """Composing all that is asked for once more: a third of a run that is compiled already."""
        # Of the leaves experiments alone set it.
        named = any("hydra.mode" in each or each.startswith("experiment=") for each in overrides)
        return look(self, config_name, overrides) if named else None

    monkeypatch.setattr(Hydra, "get_mode", get_mode)
    before = signal.getsignal(signal.SIGTERM)
    # A shell ignores it in what it starts in the background, these tests perhaps.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield run
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, before)
