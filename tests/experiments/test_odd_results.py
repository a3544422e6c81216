"""One odd `result.json` stops no report: it is named and left out, or shown as it is."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments import report
from experiments.common.errors import BadInputError
from experiments.reports import table
from experiments.storage.result_file import read_result
from tests.experiments.test_report import run

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x" * 500, "$x^{", "\x1b]0;t\x07\ud800"),
    *([], [1], {}, {"a": 1}, {"a": None}, {"": {}}, [[[]]], "=cmd|' /C calc'!A0"),
)
FIELDS = ("task", "status", "seed", "test_metrics", "value", "counts", "seconds", "steps")
FIELDS += ("compile_seconds", "overrides", "choices", "settings", "command", "process")
FIELDS += ("message", "error", "unknown", "baselines", "hyper_summary", "evidence", "notes")
ABSENT = object()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed in range(3):
        run(tmp_path, "a=1", seed, 0.5 + 0.1 * seed)
        run(tmp_path, "a=2", seed, 0.8 + 0.1 * seed)
    return tmp_path


def reported(folder: Path, *, page: bool = False) -> int:
    return report.main([str(folder), *([] if page else ["--no-page"])])


def make_odd(folder: Path, value: Any) -> None:
    """One run for each field, in which that field alone is odd."""
    whole = json.loads((folder / "a=2-1" / "result.json").read_text())
    for field in FIELDS:
        place = folder / f"a=2-{field}"
        place.mkdir(exist_ok=True)
        changed = {name: x for name, x in whole.items() if name != field}
        if value is not ABSENT:
            changed[field] = value
        (place / "result.json").write_text(json.dumps(changed))
        shutil.copy(folder / "a=2-1" / "history.parquet", place)


@pytest.mark.parametrize("value", [ABSENT, *ODD], ids=lambda value: repr(value)[:20])
def test_odd_field_stops_no_report(
    sweep: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_odd(sweep, value)
    assert reported(sweep) == 0
    said = capsys.readouterr()
    assert "a=1" in said.out
    assert "\x1b" not in said.out + said.err
    assert "Traceback" not in said.err


@pytest.mark.extended
@pytest.mark.parametrize("value", ["$x^{", {"$\\frac": 1.0}, None], ids=repr)
def test_odd_field_stops_no_page(sweep: Path, value: Any) -> None:
    make_odd(sweep, value)
    assert reported(sweep, page=True) == 0


TEXTS = {
    "nothing": "",
    "zeros": "\0\0",
    "half": '{"status": "comp',
    "no dictionary": "[1, 2]",
    "a number": "3",
    "deep": "[" * 100_000,
    "deep dictionary": '{"a":' * 100_000,
    "another encoding": "\xff\xfe",
    "long number": '{"seed": ' + "9" * 10_000 + "}",
    "not a number": '{"status": NaN}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_file_that_is_no_result_is_named_and_left_out(
    sweep: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep / "a=2-1" / "result.json"
    path.write_bytes(text.encode("latin-1"))
    assert reported(sweep) == 0
    said = capsys.readouterr()
    assert f"left out: {path}: this is no" in said.err
    with pytest.raises(BadInputError, match="this is no"):
        read_result(path)


def test_page_names_what_was_left_out(sweep: Path) -> None:
    (sweep / "a=2-1" / "result.json").write_text("[]")
    assert reported(sweep, page=True) == 0
    text = (sweep / "report.html").read_text()
    assert "<h2>Left out</h2>" in text
    assert "this is no result of a run, but a list" in text


def test_history_that_cannot_be_read_is_left_out(sweep: Path) -> None:
    (sweep / "a=2-1" / "history.parquet").write_bytes(b"PAR1 and no more")
    (sweep / "a=1-1" / "history.parquet").unlink()
    (sweep / "a=1-1" / "history.csv").write_text("step,other\n1,x\n")
    assert reported(sweep, page=True) == 0


def test_formula_is_text_in_a_spreadsheet(sweep: Path) -> None:
    for place, text in enumerate(("=1+1", "@SUM(A1)", "+task.a=1", "-1+1", "\t=1")):
        run(sweep, f"f{place}", 0, 1.0, task=text, overrides=[text])
    assert reported(sweep) == 0
    for line in (sweep / "report.csv").read_text().splitlines()[1:]:
        for cell in line.split(",")[:2]:
            assert cell.strip('"')[0] not in "=@+\t"
            assert cell == "-" or cell[0] != "-"


def test_table_is_printed_where_nothing_can_be_written(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, write: Any) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(report, "write_whole", refuse)
    assert reported(sweep) == 0
    said = capsys.readouterr()
    assert "a=1" in said.out
    assert "not written, the table above is all" in said.err


def test_run_that_failed_before_it_had_a_task_counts_in_its_row(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path, "a=1", seed, 0.5, task="ridge diabetes")
        run(tmp_path, "a=2", seed, 0.8, task="ridge diabetes")
    place = tmp_path / "failed"
    place.mkdir()
    failed = {"status": "failed", "error": "memory", "choices": {"task": "t"}}
    failed["overrides"] = ["seed=2", "a=1"]
    (place / "result.json").write_text(json.dumps(failed))
    best, other = table.rows(report.read(tmp_path))
    assert (best.label, other.label) == ("a=2", "a=1")  # what lost a seed is not best
    assert (other.task, other.completed, other.other) == ("ridge diabetes", 2, {"failed": 1})
    lines = table.make_table([best, other]).to_dict("records")
    assert [line["verdict"] for line in lines] == ["best", "1 failed"]
    assert [line["of"] for line in lines] == [2, 3]
