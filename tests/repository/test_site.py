"""The site: every public name has its place in the reference, and every page is reached."""

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
import yaml

from tests.repository.architecture import Source, library
from tests.repository.rooms import is_facade

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
# Rooms with an `__all__` for the other rooms, not for users.
INSIDE = {"bilevel.core", "bilevel.utils"}
GROUPS = ["Learn", "How-to", "Reference", "Background"]
ENTRY = re.compile(r"^(?:\[\]\(\)\{#([\w.]+)\}|::: ([\w.]+))$", re.MULTILINE)


@pytest.fixture(scope="module")
def public(sources: Sequence[Source]) -> set[str]:
    """The full dotted names of the `__all__` of the package and its public rooms."""
    with_names = [s for s in library(sources) if is_facade(s) and "\n__all__ = " in s.text]
    facades = {s.module for s in with_names if s.module.count(".") < 2} - INSIDE
    assert len(facades) > 10
    return {f"{name}.{n}" for name in facades for n in importlib.import_module(name).__all__}


def look_up(name: str) -> object:
    """Return the object of a full dotted name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, last = name.rpartition(".")
        return getattr(importlib.import_module(owner), last)


def entries(text: str) -> Iterator[tuple[str, str]]:
    """Yield each name that a page has an anchor for, with the name whose text stands there.

    An anchor stands above the text of the same object; one of a module, at the top of its page.
    """
    waiting: list[str] = []
    for anchor, directive in ENTRY.findall(text):
        waiting += [anchor or directive]
        if directive:
            yield from ((name, directive) for name in waiting)
            waiting = []


def misplaced(pages: Iterable[str], public: set[str]) -> list[str]:
    """Return the public names that stand nowhere, twice, or above the text of another object."""
    found: dict[str, list[bool]] = {}
    for text in pages:
        for name, shown in entries(text):
            thing = look_up(name)
            is_room = inspect.ismodule(thing) and name != shown
            found.setdefault(name, []).append(is_room or thing is look_up(shown))
    return sorted(name for name in public | found.keys() if found.get(name) != [True])


def test_the_reference_has_each_public_name_once(public: set[str]) -> None:
    pages = [page.read_text(encoding="utf-8") for page in REFERENCE]
    assert misplaced(pages, public) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", ["bilevel.SGD"]),
        ("::: bilevel.SGD\n\n::: bilevel.SGD", ["bilevel.SGD"]),
        ("[](){#bilevel.SGD}\n\n::: bilevel.CG", ["bilevel.SGD"]),
        (
            "# Solvers\n\n[](){#bilevel.solvers}\n\n[](){#bilevel.solvers.SGD}\n\n::: bilevel.SGD",
            [],
        ),
    ],
)
def test_a_misplaced_name_is_found(text: str, wrong: list[str]) -> None:
    assert misplaced([text], {"bilevel.SGD"}) == wrong


def load_settings() -> dict[str, Any]:
    """Return the settings of the site, what the environment sets as its plain text."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text.replace("!ENV ", ""))


def nav_pages(nav: object) -> list[str]:
    """Return the pages of a navigation tree, in its order."""
    if isinstance(nav, str):
        return [nav]
    branches = nav.values() if isinstance(nav, dict) else nav
    assert isinstance(branches, Iterable)
    return [page for branch in branches for page in nav_pages(branch)]


def test_every_page_is_in_the_navigation_once() -> None:
    settings = load_settings()
    assert [name for group in settings["nav"] for name in group] == GROUPS
    files = [*DOCS.rglob("*.md"), *(DOCS / "tutorials").glob("*.py")]
    pages = {page.relative_to(DOCS).as_posix() for page in files}
    listed = nav_pages(settings["nav"])
    assert sorted(listed) == sorted(pages)


@pytest.mark.extended
def test_the_site_has_each_public_name_with_its_signature(public: set[str], tmp_path: Path) -> None:
    """One strict build: an anchor for each name, and a signature below it where it is called.

    Tutorials are not run for it: they have a test of their own, each in its own process.
    """
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TUTORIALS": "false"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    everything = "".join(p.read_text(encoding="utf-8") for p in tmp_path.rglob("*.html"))
    assert (
        re.findall(r'(?:src="|<link rel="stylesheet" href=")(?:https?:)?//[^"]*', everything) == []
    )
    assert 'class="mermaid"' not in everything  # the theme would fetch a script for it
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.rglob("reference/*/index.html")]
    anchors = {name for page in pages for name in re.findall(r'id="(bilevel[\w.]*)"', page)}
    assert public - anchors == set()
    signed = {name for page in pages for name in signatures(page)}
    shown = {d for page in REFERENCE for _, d in entries(page.read_text(encoding="utf-8"))}
    assert {name for name in shown if is_called(look_up(name))} - signed == set()


def is_called(thing: object) -> bool:
    """Whether users call it: not a protocol, a warning, or a type that stands in annotations."""
    if inspect.isclass(thing):
        ours = thing.__module__.startswith("bilevel")
        return ours and not issubclass(thing, Exception) and Protocol not in thing.__bases__
    return inspect.isfunction(thing)


def signatures(page: str) -> Iterator[str]:
    """Yield the names whose heading is followed by a signature."""
    for part in re.split(r'<h\d id="(?=bilevel)', page)[1:]:
        if "doc-signature" in part:
            yield part.partition('"')[0]


def module_of_docs(name: str, needs: str) -> ModuleType:
    """Return a module that the site is built with."""
    pytest.importorskip(needs, reason="the extra `docs` is not installed: make docs")
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_items_of_a_section_stand_below_their_names() -> None:
    docstrings = module_of_docs("docstrings", "griffe")
    text = (
        "One : two.\n\nParameters\n----------\na, b : the\n    pair.\nOthers : as in f.\n\nRaises"
    )
    expected = "One : two.\n\nOther parameters: as in f.\n\nParameters\n----------\n"
    expected += "a\n    the\n    pair.\nb\n    the\n    pair.\n\nRaises"
    assert docstrings.split_items(text) == expected


def test_roles_become_references() -> None:
    docstrings = module_of_docs("docstrings", "griffe")
    module = docstrings.griffe.visit("bilevel.a", Path("a.py"), "def f(): ...")
    linked = docstrings.link_roles(":func:`f`, :func:`bilevel.g` and :func:`h`", module)
    reference = '<autoref optional identifier="bilevel.{0}"><code>{1}</code></autoref>'
    first, second = reference.format("a.f", "f"), reference.format("g", "bilevel.g")
    assert linked == f"{first}, {second} and `h`"


def test_formulas_are_drawn_without_a_script() -> None:
    formulas = module_of_docs("formulas", "latex2mathml")
    inline = r'<p>if <span class="arithmatex">\(a &lt; b\)</span></p>'
    block = '<div class="arithmatex">\n\\[x^2\\]\n</div>'
    page = formulas.on_page_content(inline + block, page=None)
    assert page.startswith("<p>if <math")
    assert 'display="block"' in page
    assert "arithmatex" not in page
