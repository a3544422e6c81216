"""`make test` uses every public name: what is marked extended or slow only adds to it."""

import ast
from collections.abc import Sequence

import pytest

from tests import durations
from tests.repository import public_names as names
from tests.repository.architecture import Source, library
from tests.repository.rooms import is_facade

# Values that a call returns, which no test makes: the call.
RETURNED = {"bilevel.Cost": "bilevel.estimate_cost", "bilevel.Plan": "bilevel.plan"}
RETURNED |= {"bilevel.Confidence": "bilevel.confidence"}


@pytest.fixture(scope="module")
def used(sources: Sequence[Source]) -> set[str]:
    record = durations.read()
    long = durations.long_ones(record)
    rows = {f"{file}::{name}" for file, names_ in record.items() for name in names_ if name}
    quick = {node.partition("[")[0] for node in rows - long}
    return names.used_by_default(sources, {node.partition("[")[0] for node in long} - quick)


def test_every_name_of_the_package_stands_in_a_test_or_an_example(used: set[str]) -> None:
    direct = {id(thing) for name in used for thing in names.look_up(name)}
    missing = set(names.missing(["bilevel"], direct))
    assert missing <= RETURNED.keys()
    assert {RETURNED[name] for name in missing} <= used


def test_every_name_of_every_room_is_reached(used: set[str], sources: Sequence[Source]) -> None:
    """By a test, an example, or the code of the library that these refer to."""
    inside = library(sources)
    facades = [s.module for s in inside if is_facade(s) and "\n__all__ = " in s.text]
    assert len(facades) > 10
    assert names.missing(facades, names.reached(inside, used)) == []


TEST_FILE = """
import pytest
import bilevel as bl
from bilevel import linear

def helper(): return bl.SGD

def other(): return bl.Newton

TABLE = {"cg": linear.CG}

@pytest.fixture
def solved(): return bl.solve

def test_quick(solved): helper(), TABLE

@pytest.mark.extended
def test_long(): other(), bl.Forward

@pytest.mark.slow
def test_longest(): bl.Reverse
"""


def test_only_what_runs_by_default_counts() -> None:
    found = names.used_by_default([Source("tests/test_a.py", TEST_FILE)])
    classes = {"bilevel.SGD", "bilevel.linear.CG", "bilevel.solve"}
    assert classes <= found
    assert not {"bilevel.Newton", "bilevel.Forward", "bilevel.Reverse"} & found
    assert (
        names.used_by_default([Source("tests/test_a.py", "import bilevel\nbilevel.SGD")]) == set()
    )
    found = names.used_by_default(
        [Source("tests/test_a.py", TEST_FILE)], {"tests/test_a.py::test_quick"}
    )
    assert not found & classes
    whole = TEST_FILE + "\npytestmark = [pytest.mark.usefixtures('x'), pytest.mark.extended]"
    assert names.used_by_default([Source("tests/test_a.py", whole)]) == set()


def test_an_example_counts_with_the_names_of_its_module() -> None:
    example = ">>> import bilevel as bl\n    >>> solve(bl.SGD(0.1))"
    text = f"def solve():\n    '''One.\n\n    {example}\n    '''"
    found = names.used_by_default([Source("bilevel/solvers/base.py", text)])
    assert {"bilevel.solvers.base.solve", "bilevel.SGD"} <= found
    assert [ast.unparse(s.tree) for s in names.examples(Source("bilevel/a.py", "x = 1"))] == []


def test_a_name_that_nothing_uses_is_missing() -> None:
    assert "bilevel.SGD" in names.missing(["bilevel"], set())


def test_what_took_long_waits_for_test_all(request: pytest.FixtureRequest) -> None:
    """The marks of this run's tests are those of the record."""
    long = durations.long_ones({"tests/a.py": {"": 9.0, "test_x[1]": 2.0, "test_y": 0.9}})
    assert long == {"tests/a.py::test_x[1]"}
    recorded = durations.long_ones(durations.read())
    items = {item.nodeid: item for item in request.session.items}
    assert all(items[node].get_closest_marker("extended") for node in recorded & items.keys())


def test_durations_are_recorded_of_nearly_all_tests(sources: Sequence[Source]) -> None:
    """``make test-all ARGS=--record-durations`` where this fails: renamed tests have none."""
    recorded = durations.read()
    functions = {
        source.path: {n.name for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef)}
        for source in sources
        if names.is_test_file(source)
    }
    rows = [(file, name.partition("[")[0]) for file in recorded for name in recorded[file] if name]
    stale = [row for row in rows if row[1] not in functions.get(row[0], ())]
    assert len(stale) < 0.1 * len(rows), stale
    assert len(recorded.keys() & functions.keys()) > 0.9 * len(functions)


def test_a_record_keeps_what_was_not_measured_again(tmp_path) -> None:
    (tmp_path / "test_a.py").touch()
    (tmp_path / "test_b.py").touch()
    before = {"test_a.py": {"": 9.0, "test_x": 9.0}, "test_b.py": {"": 1.0}, "gone.py": {"": 1.0}}
    taken = {"test_a.py::test_x": 0.32, "test_a.py::test_y[1]": 5.12}
    expected = {"test_a.py": {"": 5.4, "test_y[1]": 5.1}, "test_b.py": {"": 1.0}}
    assert durations.merge(before, taken, tmp_path) == expected
