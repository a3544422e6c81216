"""The page "the three papers, result by result" names functions and tests that exist."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`test_" in line]


def test_every_row_names_a_test_of_the_theory() -> None:
    rooms = [ROOT / "tests" / room for room in ("noise", "planning")]
    files = [path for room in rooms for path in room.glob("test_*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    known = set(re.findall(r"def (test_\w+)", "\n".join(texts)))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named <= known, named - known
    body = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(body) == len(ROWS) + PAGE.count("| function | test |")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?!bilevel)[a-z_]+\.[a-z_]+)`", PAGE))))
def test_every_function_exists(name: str) -> None:
    module, function = name.split(".")
    assert callable(getattr(getattr(importlib.import_module("bilevel.noise"), module), function))
