"""The tracked Python files, read and parsed once for all the rules about them."""

import subprocess

import pytest

from tests.conftest import ROOT
from tests.repository.architecture import Source


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    command = ["git", "ls-files", "-z", "--", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [
        Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in paths
        if path.exists()
    ]
