"""What can be chosen, in the shell: `--list`, `--help`, completion; and the command of a run."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import completion, listing
from experiments.cli.settings import NODES
from experiments.run import main
from tests.conftest import ROOT
from tests.experiments.conftest import LOGGING, Command

LEAVES = sorted(path for group in listing.GROUPS for path in (ROOT / "conf").glob(f"{group}/*"))


def test_every_leaf_says_in_a_sentence_what_it_is() -> None:
    assert set(listing.GROUPS) == {*NODES, "experiment"}
    texts = {path: listing.sentence(path) for path in LEAVES}
    assert [path for path, text in texts.items() if not 8 < len(text) < 200] == []


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("# One. Two", "One"),
        ("# @package _global_\n# A et al. (2018), as\n# 2.5. More.", "A et al. (2018), as 2.5"),
        ("_target_: a  # not this", ""),
    ],
)
def test_sentence(tmp_path: Path, comment: str, expected: str) -> None:
    (tmp_path / "a.yaml").write_text(f"{comment}\n_target_: b\n# nor this")
    assert listing.sentence(tmp_path / "a.yaml") == expected


def asked(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *line: str) -> str:
    monkeypatch.setattr(sys, "argv", ["run", *line])
    status = main()
    captured = capsys.readouterr()
    return captured.out if status == 0 else f"{status} {captured.err}"


@pytest.mark.extended
def test_list_and_help_name_every_leaf(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, leaves: Path
) -> None:
    (leaves / "task" / "tiny.yaml").write_text("# A tiny one\n_target_: tasks.tiny.tiny\n")
    own = ["--config-dir", str(leaves)]
    whole = asked(capsys, monkeypatch, "--list", *own)
    for text in (whole, asked(capsys, monkeypatch, "--help", *own, *LOGGING)):
        for path in LEAVES:
            assert f"\n  {path.stem} " in text
        assert "  A tiny one\n" in text
    assert "Exit status: 0 done" in asked(capsys, monkeypatch, "--help", *LOGGING)
    some = asked(capsys, monkeypatch, "--list", "outer,solver")
    assert [line for line in some.splitlines() if line.endswith("=")] == ["outer=", "solver="]
    wrong = asked(capsys, monkeypatch, "--list", "solvers")
    assert wrong.startswith("1 error: --list solvers: no such group. Did you mean 'solver'?")


def completed(line: str) -> list[str]:
    """What bash proposes for the last word of `line`."""
    code = f"""{completion.answer(["-sc", "install=bash"])}
COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} _bilevel_run
printf '%s\\n' "${{COMPREPLY[@]}}"; complete -p python"""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", code],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    *words, registered = done.stdout.splitlines()
    assert registered.endswith("-F _bilevel_run python")
    return words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # bash replaces what follows `=` only.
        ("python -m experiments.run -m task=ridge solver=sg", ["sgd", "sgd_decreasing"]),
        (f"{sys.executable} -m experiments.run solver.ba", ["solver.batch_size="]),
        ("python my_own.py solver=sg", [""]),
    ],
    ids=["a leaf", "a setting, this Python", "another program"],
)
def test_shell_completes_groups_leaves_and_settings(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_only_known_shells_get_a_script() -> None:
    assert completion.asked(["-sc", "install=zsh"])
    assert not completion.asked(["-sc", "query=bash"])
    with pytest.raises(ValueError, match=r"expected install=bash, install=zsh .* got install=fish"):
        completion.answer(["-sc", "install=fish"])


@pytest.mark.extended
def test_run_holds_the_command_that_makes_it_again(command: Command, tmp_path: Path) -> None:
    """Also that of a sweep, and after it was resumed: choices and numbers are the same."""
    sweep = tmp_path / "sweep"
    line = ["-m", f"hydra.sweep.dir={sweep}", "seed=1,2", "estimator=implicit", "max_error=null"]
    assert command(*line).status == 0
    folder = next(path.parent for path in sweep.glob("*seed-2*/result.json"))
    assert command(f"resume={folder}", "steps=6", quick=[]).status == 0
    first = json.loads((folder / "result.json").read_text())
    assert first["choices"]["estimator"] == "implicit"
    words = shlex.split(first["command"])
    assert words[:3] == ["python", "-m", "experiments.run"]
    again = tmp_path / "again"
    changes = [word for word in words[5:] if "logging" not in word]  # without --config-dir FOLDER
    assert command(*changes, f"hydra.run.dir={again}", quick=[]).status == 0
    second = json.loads((again / "result.json").read_text())
    assert first["settings"].pop("resume") == str(folder)
    assert second["settings"].pop("resume") is None
    for found in (first, second):  # that of the command: code is not taken from a folder
        del found["settings"]["compile_cache"]
    for same in ("choices", "settings", "value", "test_metrics", "steps"):
        assert first[same] == second[same], same
