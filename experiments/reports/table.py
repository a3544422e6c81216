"""Runs as a table: those that differ in nothing but the seed are one row; who won, and by what."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

SEEDS = ("seed", "task.seed", "task.table.seed")
COUNTS = ("gradients", "hvps", "jvps", "vjps")  # oracle calls, in results and histories
COLUMNS = ("task", "run", "completed", "of", "metric", "mean", "95 %", "value", "calls", "seconds")
COLUMNS += ("MiB", "difference", "d 95 %")
LOST = {"failed", "diverged"}
RULE = (
    "Winner: of the rows without a run that failed or diverged (of all, if there is none), the one "
    "with the least mean of the first test metric. As good: the paired 95 % interval of the "
    "difference over common seeds reaches 0, not corrected for the number of rows. It is chosen "
    "on test data, so its number is too good by the luck of the draw: repeat it on other seeds."
)


@dataclass(frozen=True)
class Row:
    """Runs of one task that differ only in the seed.

    Parameters
    ----------
    task, label : which; the label holds what the command line changed.
    metric : name of the headline test metric; less of it is better.
    scores : seed -> that metric, of the runs that were completed.
    value, calls, seconds : means of the outer value, of all oracle calls, of the wall-clock time.
    peak : the largest memory of a process that made one of them so far, in MiB.
    other : how many runs have another status, by status.
    runs : their results, all of them.
    """

    task: str
    label: str
    metric: str
    scores: dict[Any, float]
    value: float
    calls: float
    seconds: float
    peak: float
    other: dict[str, int]
    runs: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def mean(self) -> float:
        """Of the scores; NaN where no run was completed."""
        return statistics.fmean(self.scores.values()) if self.scores else math.nan

    @property
    def lost(self) -> bool:
        """Whether a run failed or diverged: the mean over the rest is no fair one."""
        return bool(LOST & self.other.keys())


def rows(results: list[dict[str, Any]]) -> list[Row]:
    """Group the results by all but the seed; best first within each task."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    shared = set.intersection(*(set(_changes(result)) for result in results))
    for result in results:
        changed = [change for change in _changes(result) if change not in shared]
        task = result.get("task", result["choices"]["task"])
        groups[task, " ".join(changed) or "-"].append(result)
    found = [_row(task, label, group) for (task, label), group in groups.items()]
    return sorted(found, key=lambda row: (row.task, not row.scores, row.lost, row.mean))


def cells(found: list[Row]) -> list[list[Any]]:
    """The table: a header, then one line per row; the last column says who won."""
    lines: list[list[Any]] = [[*COLUMNS, "verdict"]]
    best: dict[str, Row] = {}
    for row in found:
        winner = best.setdefault(row.task, row)
        completed = len(row.scores)
        count = [completed, completed + sum(row.other.values())]
        score = [row.metric, row.mean, interval(list(row.scores.values()))]
        cost = [row.value, row.calls, row.seconds, row.peak]
        paired = difference(row, winner)
        lines.append([row.task, row.label, *count, *score, *cost, *paired, verdict(row, winner)])
    return lines


def verdict(row: Row, winner: Row) -> str:
    """`best`; `as good` where the paired difference over common seeds may be 0; or what failed."""
    failed = ", ".join(f"{count} {status}" for status, count in sorted(row.other.items()))
    if not row.scores:
        return failed
    said = "best" if row is winner else ""
    mean, half = difference(row, winner)
    if row is not winner and not row.lost and mean <= half:
        said = "as good (95 %)"
    return ", ".join(part for part in (said, failed) if part)


def difference(row: Row, winner: Row) -> tuple[float, float]:
    """Mean of score minus the winner's over common seeds, and half the width of its interval."""
    common = sorted(row.scores.keys() & winner.scores.keys(), key=str)
    differences = [row.scores[seed] - winner.scores[seed] for seed in common]
    mean = statistics.fmean(differences) if differences else math.nan
    return mean, interval(differences)


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
        max(
            (r.get("process", {}).get("peak_memory_mib", math.nan) for r in completed),
            default=math.nan,
        ),
        dict(other),
        group,
    )


def _peak(result: dict[str, Any]) -> float:
    return result.get("process", {}).get("peak_memory_mib", math.nan)


def _changes(result: dict[str, Any]) -> list[str]:
    """What the command line changed, without the seed."""
    given = result["overrides"]
    return [change for change in given if change.split("=")[0].lstrip("+") not in SEEDS]


def shown(cell: Any) -> str:
    """Five digits, or a dash for what is not known."""
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:,.0f}" if abs(cell) >= 1e5 else f"{cell:.5g}"
    return str(cell)
