"""The command `python -m experiments.report FOLDER`: one table of all runs below a folder.

Runs that differ in nothing but the seed are one row: mean of the headline test metric with its
95 % interval over seeds, the cost, and the winner. Exit status: 0, or 1 where there is no result.
"""

import argparse
import csv
import io
import math
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.files import write_whole
from experiments.resume import read_result
from experiments.words import BadInputError

SEEDS = ("seed", "task.seed")
COLUMNS = ("task", "run", "completed", "of", "metric", "mean", "95 %", "value", "calls", "seconds")


@dataclass(frozen=True)
class Row:
    """Runs of one task that differ only in the seed.

    Parameters
    ----------
    task, label : which; the label holds what the command line changed.
    metric : name of the headline test metric; less of it is better.
    scores : seed -> that metric, of the runs that were completed.
    value, calls, seconds : means of the outer value, of all oracle calls, of the wall-clock time.
    other : how many runs have another status, by status.
    """

    task: str
    label: str
    metric: str
    scores: dict[Any, float]
    value: float
    calls: float
    seconds: float
    other: dict[str, int]

    @property
    def mean(self) -> float:
        """Of the scores; NaN where no run was completed."""
        return statistics.fmean(self.scores.values()) if self.scores else math.nan


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the folder in `arguments`, and write it there as csv and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run, a sweep, or anything above them")
    folder = parser.parse_args(arguments).folder
    try:
        table = cells(rows(read(folder)))
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    markdown = "\n".join(_markdown([[_shown(cell) for cell in line] for line in table])) + "\n"
    write_whole(folder / "report.csv", lambda file: file.write(text.getvalue().encode()))
    write_whole(folder / "report.md", lambda file: file.write(markdown.encode()))
    print(markdown)
    print(f"written: {folder / 'report.csv'}, {folder / 'report.md'}")
    return 0


def read(folder: Path) -> list[dict[str, Any]]:
    """Every result below `folder`.

    Raises
    ------
    BadInputError : there is none, or a damaged one.
    """
    results = []
    for path in sorted(folder.rglob("result.json")):
        results.append(read_result(path))
    if not results:
        raise BadInputError(f"{folder}: there is no result.json in or below this folder.")
    return results


def rows(results: list[dict[str, Any]]) -> list[Row]:
    """Group the results by all but the seed; best first within each task."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    shared = set.intersection(*(set(_changes(result)) for result in results))
    for result in results:
        changed = [change for change in _changes(result) if change not in shared]
        task = result.get("task", result["choices"]["task"])
        groups[task, " ".join(changed) or "-"].append(result)
    found = [_row(task, label, group) for (task, label), group in groups.items()]
    return sorted(found, key=lambda row: (row.task, not row.scores, row.mean))


def cells(found: list[Row]) -> list[list[Any]]:
    """The table: a header, then one line per row; the last column says who won."""
    lines: list[list[Any]] = [[*COLUMNS, "verdict"]]
    best: dict[str, Row] = {}
    for row in found:
        winner = best.setdefault(row.task, row)
        completed = len(row.scores)
        count = [completed, completed + sum(row.other.values())]
        score = [row.metric, row.mean, interval(list(row.scores.values()))]
        cost = [row.value, row.calls, row.seconds]
        lines.append([row.task, row.label, *count, *score, *cost, verdict(row, winner)])
    return lines


def verdict(row: Row, winner: Row) -> str:
    """`best`; `as good` where the paired difference over common seeds may be 0; or what failed."""
    failed = ", ".join(f"{count} {status}" for status, count in sorted(row.other.items()))
    if not row.scores:
        return failed
    said = "best" if row is winner else ""
    if row is not winner:
        common = sorted(row.scores.keys() & winner.scores.keys(), key=str)
        differences = [row.scores[seed] - winner.scores[seed] for seed in common]
        if len(common) > 1 and statistics.fmean(differences) <= interval(differences):
            said = "as good (95 %)"
    return ", ".join(part for part in (said, failed) if part)


def interval(numbers: list[float]) -> float:
    """Half the width of Student's 95 % interval for the mean; NaN for fewer than two numbers."""
    if len(numbers) < 2:
        return math.nan
    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes a second to import

    quantile = float(stdtrit(len(numbers) - 1, 0.975))
    return quantile * statistics.stdev(numbers) / math.sqrt(len(numbers))


def _row(task: str, label: str, group: list[dict[str, Any]]) -> Row:
    completed = [result for result in group if result["status"] == "completed"]
    other: dict[str, int] = defaultdict(int)
    for result in group:
        if result["status"] != "completed":
            other[result["status"]] += 1
    metric = next(iter(completed[0]["test_metrics"])) if completed else "-"

    def mean(of: Any) -> float:
        return statistics.fmean(map(of, completed)) if completed else math.nan

    return Row(
        task,
        label,
        metric,
        {result["seed"]: result["test_metrics"][metric] for result in completed},
        mean(lambda result: result["value"]),
        mean(lambda result: sum(result["counts"].values())),
        mean(lambda result: result["seconds"] + result["compile_seconds"]),
        dict(other),
    )


def _changes(result: dict[str, Any]) -> list[str]:
    """What the command line changed, without the seed."""
    given = result["overrides"]
    return [change for change in given if change.split("=")[0].lstrip("+") not in SEEDS]


def _shown(cell: Any) -> str:
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:,.0f}" if abs(cell) >= 1e5 else f"{cell:.5g}"
    return str(cell)


def _markdown(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


if __name__ == "__main__":
    sys.exit(main())
