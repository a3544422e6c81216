"""Every Python block of the README and of the documentation runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Words that only the authors understand, or that lack the term of the field.
PRIVATE = re.compile(
    r"\b(?:V1?[0-9]|the issue|not to be had|at rest|astray|bent|acceptance figure)\b"
)
FIGURE = re.compile(r"^!\[(.*?)\]\(.*?\)\n\n(\*?)", re.MULTILINE)
PRINTS = {"README.md", "hypergradients.md"}  # whose one block of text is what the code prints
OUTPUT = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def program(page: Path) -> str:
    """All Python blocks of a page, joined: later blocks may use what earlier ones defined."""
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


@pytest.mark.extended
@pytest.mark.parametrize("page", [p for p in PAGES if program(p)], ids=lambda p: p.name)
def test_page_runs(page, tmp_path):
    """A fresh interpreter runs the page's blocks, warnings as errors."""
    code = program(page)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if page.name in PRINTS:
        (printed,) = OUTPUT.findall(page.read_text(encoding="utf-8"))
        assert done.stdout == printed


def test_readme_example_has_twenty_lines_or_so():
    """The README promises a short example."""
    lines = [line for line in program(PAGES[0]).splitlines() if line.strip()]
    assert len(lines) <= 25


def test_links_between_pages_resolve():
    """Relative links of the README and the documentation point at files that exist."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_formula_stays_in_its_line(page):
    """A formula that goes on in another line ends where that begins with a ``+``: a list's sign."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [re.sub(r"`[^`]*`|\\\$", "", line) for line in text.splitlines()]
    assert [line for line in lines if line.count("$") % 2] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_speaks_to_its_readers(page):
    """No private words; a figure has a text in its place, and a caption that says what it shows."""
    text = page.read_text(encoding="utf-8")
    assert PRIVATE.findall(text) == []
    figures = FIGURE.findall(text)
    assert len(figures) == text.count("\n![")
    assert all(len(instead) > 15 and caption == "*" for instead, caption in figures)
