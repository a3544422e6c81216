"""The house keeps its order: rooms, arrows, names, docstrings and annotations; each rule bites."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest

from tests.repository import rooms, wording
from tests.repository.architecture import Source, library

Files = Sequence[Source]


def each(rule: Callable[[Source], object]) -> Callable[[Files], list[object]]:
    """The rule of one file, over many."""
    return lambda files: [found for source in files for found in rule(source)]


class Rule(NamedTuple):
    """What is measured in which files, the most it may be, and what it is to become.

    A list is measured by its length. ``most`` above ``aim`` is a ratchet: it only ever falls.
    """

    measure: Callable[[Files], object]
    most: float
    aim: float
    everywhere: bool = False


RULES = {
    "folders with too many loose modules": Rule(rooms.loose_modules, 0, 0, True),
    "loose files of tasks/ that make no task": Rule(rooms.helpers_among_tasks, 0, 0, True),
    "imports that point upwards": Rule(rooms.arrows_up, 0, 0),
    "modules hidden by a name of their room": Rule(rooms.shadowed_modules, 0, 0),
    "imports of a module on average": Rule(rooms.imports_per_module, 3.4, 3.4),
    "longest chain of imports": Rule(rooms.longest_chain, 12, 12),
    "names that two modules define": Rule(wording.names_of_two_modules, 0, 0),
    "functions of one word": Rule(each(wording.one_word_functions), 0, 0),
    "docstrings that begin with no sentence": Rule(each(wording.unfinished_docstrings), 0, 0),
    "share of Any": Rule(wording.share_of_any, 0.12, 0.12),
    "statements kept from the formatter": Rule(each(wording.unformatted), 20, 20, True),
    "facades without an __all__": Rule(wording.facades_without_all, 0, 0, True),
}


def measured(rule: Rule, files: Files) -> tuple[float, object]:
    found = rule.measure(files if rule.everywhere else library(files))
    if isinstance(found, float):
        return found, found
    found = list(found)  # type: ignore[call-overload]
    return len(found), found


@pytest.mark.parametrize("name", RULES)
def test_the_house_keeps(name: str, sources: Files) -> None:
    value, found = measured(RULES[name], sources)
    assert value <= RULES[name].most, found


def test_no_ceiling_is_below_its_aim() -> None:
    assert all(rule.most >= rule.aim for rule in RULES.values())


BAD: list[tuple[str, dict[str, str], str]] = [
    ("folders with too many loose modules", {"bilevel/tune.py": ""}, "bilevel/tune.py"),
    (
        "folders with too many loose modules",
        {f"experiments/{name}.py": "" for name in "abcde"},
        "5 loose files, at most 4",
    ),
    ("loose files of tasks/ that make no task", {"tasks/rates.py": "def f() -> int: ..."}, "rates"),
    (
        "imports that point upwards",
        {"bilevel/core/a.py": "from ..outer import b", "bilevel/outer/b.py": ""},
        "bilevel.core.a imports bilevel.outer.b",
    ),
    (
        "imports that point upwards",
        {"bilevel/core/a.py": "def f():\n import bilevel", "bilevel/__init__.py": ""},
        "bilevel.core.a imports bilevel,",
    ),
    (
        "imports that point upwards",
        {"bilevel/core/__init__.py": "from bilevel.outer import b", "bilevel/outer/b.py": ""},
        "bilevel.core imports bilevel.outer.b",
    ),
    (
        "imports that point upwards",
        {"bilevel/attic/a.py": "from ..core import b", "bilevel/core/b.py": ""},
        "no floor",
    ),
    (
        "modules hidden by a name of their room",
        {
            "bilevel/tuning/__init__.py": "from bilevel.tuning.tune import tune",
            "bilevel/tuning/tune.py": "def tune(): ...",
        },
        "bilevel.tuning.tune",
    ),
    (
        "names that two modules define",
        {"bilevel/core/a.py": "def measure(): ...", "bilevel/core/b.py": "class measure: ..."},
        "measure is defined in bilevel/core/a.py, bilevel/core/b.py",
    ),
    ("functions of one word", {"bilevel/core/a.py": "def settle(): ..."}, "settle"),
    (
        "docstrings that begin with no sentence",
        {"bilevel/core/a.py": "'''Of the next steps,\nall.'''"},
        "Of the",
    ),
    (
        "docstrings that begin with no sentence",
        {"bilevel/core/a.py": "class A:\n def f(x):\n  'that of A.'"},
        "that",
    ),
    (
        "statements kept from the formatter",
        {"docs/a.py": "x = [\n 1]  # fmt: " + "skip"},
        "docs/a.py:2",
    ),
    ("statements kept from the formatter", {"docs/a.py": "# fmt: " + "off"}, "docs/a.py:1"),
    (
        "facades without an __all__",
        {"bilevel/core/__init__.py": "from bilevel.core.a import A"},
        "bilevel/core/__init__.py",
    ),
]


@pytest.mark.parametrize(("name", "files", "message"), BAD)
def test_rule_catches(name: str, files: dict[str, str], message: str) -> None:
    value, found = measured(RULES[name], [Source(path, text) for path, text in files.items()])
    assert value == 1
    assert message in str(found)


GOOD: list[tuple[str, dict[str, str]]] = [
    ("folders with too many loose modules", {"bilevel/__init__.py": "", "tasks/base.py": ""}),
    (
        "loose files of tasks/ that make no task",
        {"tasks/ridge.py": "from tasks.base import Task\ndef ridge() -> Task: ..."},
    ),
    (
        "imports that point upwards",
        {"bilevel/outer/a.py": "from bilevel import core", "bilevel/core/__init__.py": ""},
    ),
    (
        "modules hidden by a name of their room",
        {
            "bilevel/noise/__init__.py": "from bilevel.noise import bias",
            "bilevel/noise/bias.py": "",
        },
    ),
    (
        "names that two modules define",
        {"bilevel/a/a.py": "def _f(): ...", "bilevel/a/b.py": "def _f(): ..."},
    ),
    ("functions of one word", {"bilevel/a/a.py": "def solve(): ...\ndef estimate_cost(): ..."}),
    (
        "docstrings that begin with no sentence",
        {"bilevel/a/a.py": "'''Of steps.\n\nAll.'''\ndef _f():\n 'x'"},
    ),
    (
        "facades without an __all__",
        {"bilevel/a/__init__.py": "import jax", "bilevel/a/b.py": "from bilevel import c"},
    ),
    (
        "facades without an __all__",
        {"bilevel/a/__init__.py": "from bilevel.a.b import c\n__all__ = ['c']"},
    ),
]


@pytest.mark.parametrize(("name", "files"), GOOD)
def test_rule_accepts(name: str, files: dict[str, str]) -> None:
    value, found = measured(RULES[name], [Source(path, text) for path, text in files.items()])
    assert value == 0, found


# Two rooms: a facade hands on what its module defines, and one module stands on the other.
LIBRARY = {
    "bilevel/__init__.py": "from bilevel.linear import CG",
    "bilevel/linear/__init__.py": "from bilevel.linear.cg import CG",
    "bilevel/linear/base.py": "",
    "bilevel/linear/cg.py": "import jax\nfrom bilevel.linear.base import a\nfrom . import base",
    "bilevel/solvers/sgd.py": "from bilevel.linear import CG",
    "bilevel/solvers/all.py": "from bilevel import linear\nfrom bilevel.solvers import sgd",
}
FILES = [Source(path, text) for path, text in LIBRARY.items()]


def test_imports_are_counted_once_and_a_facade_is_one() -> None:
    # base none, cg base, sgd the facade, all the facade and sgd
    assert rooms.imports_per_module(FILES) == 4 / 4


def test_facades_are_transparent_in_a_chain() -> None:
    chain = [
        "bilevel.solvers.all",
        "bilevel.solvers.sgd",
        "bilevel.linear.cg",
        "bilevel.linear.base",
    ]
    assert rooms.longest_chain(FILES) == chain
    whole = [*FILES[:-1], Source("bilevel/solvers/all.py", "from bilevel import linear")]
    assert rooms.longest_chain(whole)[-2:] == ["bilevel.linear.cg", "bilevel.linear.base"]
    assert len(rooms.longest_chain(whole)) == 3


def test_an_alias_of_an_alias_of_any_is_any() -> None:
    files = [
        Source("bilevel/a/a.py", "from typing import Any as _Any\nTree = _Any\nx: 'Tree' = 1"),
        Source(
            "bilevel/a/b.py", "from bilevel.a.a import Tree\ndef f(x: Tree, *y: int) -> Tree: ..."
        ),
        Source("bilevel/a/c.py", "from bilevel.a.a import Tree\ndef f(x: list[Tree]) -> None: ..."),
    ]
    assert wording.share_of_any(files) == 3 / 6
