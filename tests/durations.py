"""What each test took when durations were last recorded, in a file that is committed.

``make test`` leaves out what took longer than ``LONGEST``: `tests/conftest.py` marks it `extended`.
"""

import json
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
SHORT = 1.0  # seconds: below, a test counts in the total of its file only
LONGEST = 1.0  # seconds: above, a test waits for `make test-all`
# But the examples of docstrings, which are what a reader tries first and stand for their names, one
# estimator under the laws of all, and one run that diverges.
ALWAYS = (
    "tests/contract/test_public_api.py",
    "tests/contract/test_conformance.py::test_conforms[Reverse-ridge-float32]",
    "tests/tuning/test_divergence.py::test_a_step_size_too_large_from_the_start",
)

Durations = dict[str, dict[str, float]]


def read() -> Durations:
    """Return test file -> name of a test -> seconds; the name "" is the whole file."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def long_ones(record: Durations) -> set[str]:
    """Return the node ids of the tests that took too long for every change."""
    return {
        f"{file}::{name}"
        for file, rows in record.items()
        for name, seconds in rows.items()
        if name and seconds > LONGEST and not f"{file}::{name}".startswith(ALWAYS)
    }


def merge(before: Durations, taken: dict[str, float], root: Path) -> Durations:
    """Return the record with what ``taken`` measured replaced; absent files drop out.

    A test that was not run this time stays as it was: what is short where others compile for it is
    long in `make test`, whose record may follow that of `make test-all`.

    Parameters
    ----------
    taken : node id -> seconds, setup and teardown included.
    """
    measured: Durations = {}
    for node, seconds in taken.items():
        file, _, name = node.partition("::")
        measured.setdefault(file, {})[name] = seconds
    for file, rows in measured.items():
        rows |= {name: s for name, s in before.get(file, {}).items() if name and name not in rows}
        total = sum(rows.values())
        measured[file] = {name: s for name, s in rows.items() if s >= SHORT} | {"": total}
    merged = {file: rows for file, rows in {**before, **measured}.items() if (root / file).exists()}
    return {
        file: {name: round(seconds, 1) for name, seconds in sorted(rows.items())}
        for file, rows in sorted(merged.items())
    }


def write(record: Durations) -> None:
    """Write the record, one test a line."""
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
