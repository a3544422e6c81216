"""Runs as a table: those that differ in nothing but the seed are one row; who won, and by what."""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from experiments.storage.result_file import FINISHED

SEEDS = ("seed", "task.seed", "task.table.seed")
COUNTS = ("gradients", "hvps", "jvps", "vjps")  # oracle calls, in results and histories
COLUMNS = ("task", "run", "completed", "of", "metric", "mean", "95 %", "value", "calls", "seconds")
COLUMNS += ("MiB", "difference", "d 95 %")
LOST = {"failed", "diverged", "pruned"}
_NUMBERS = ("seed", "value", "calls", "seconds", "MiB")
RULE = (
    "Winner: of the rows without a run that failed, diverged or was pruned (of all, if there is "
    "none), the one with the least mean of the first test metric; never one with an unreliable "
    "run, whose last hypergradient is known to be wrong by more than max_error. As good: the "
    "paired 95 % interval of the difference over common seeds reaches 0, not corrected for the "
    "number of rows. It is chosen on test data, so its number is too good by the luck of the draw: "
    "repeat it on others."
)


@dataclass(frozen=True)
class Row:
    """Runs of one task that differ only in the seed.

    Parameters
    ----------
    task, label : which; the label holds what the command line changed.
    metric : name of the headline test metric; less of it is better.
    scores : that metric by seed, of the runs that have finished, unreliable ones too.
    completed : how many of the seeds were completed and are not unreliable.
    value, calls, seconds : means of the outer value, of all oracle calls, of the wall-clock time.
    peak : the largest memory of a process that made one of them so far, in MiB.
    other : how many runs have another status, by status.
    runs : their results, all of them.
    """

    task: str
    label: str
    metric: str
    scores: pd.Series
    completed: int
    value: float
    calls: float
    seconds: float
    peak: float
    other: dict[str, int]
    runs: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def mean(self) -> float:
        """Return the mean of the scores; NaN where no run has finished."""
        return float(self.scores.mean())

    @property
    def lost(self) -> bool:
        """Whether a run failed, diverged or was pruned: the mean over the rest is no fair one."""
        return bool(LOST & self.other.keys())

    @property
    def unreliable(self) -> bool:
        """Whether a run's last hypergradient is known to be wrong: it can be no winner."""
        return "unreliable" in self.other


def rows(results: list[dict[str, Any]]) -> list[Row]:
    """Group the results by all that was asked for but the seed; best first within each task.

    What was asked for is known of a run that failed before there was a task, too.
    """
    shared = set.intersection(*(set(_changes(result)) for result in results))
    named = {_asked_task(result): result["task"] for result in results if "task" in result}
    groups: dict[Any, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(_asked(result), []).append(result)
    found = []
    for same in groups.values():
        first = same[0]
        task = named.get(_asked_task(first), first["choices"].get("task", "-"))
        label = " ".join(c for c in _changes(first) if c not in shared) or "-"
        found.append(_row(task, label, pd.DataFrame([_facts(result) for result in same])))

    def order(row: Row) -> tuple[Any, ...]:
        return row.task, row.scores.empty, row.unreliable, row.lost, row.mean

    return sorted(found, key=order)


def _asked(result: dict[str, Any]) -> Any:
    """Return what names a row: the leaves, and what the command line changed but the seed."""
    return frozenset(result["choices"].items()), frozenset(_changes(result))


def _asked_task(result: dict[str, Any]) -> Any:
    """Return what of it decides over the task."""
    changes = {change for change in _changes(result) if _name(change).startswith("task")}
    return result["choices"].get("task"), frozenset(changes)


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the table needs of a run; numbers are there of a finished one only."""
    facts = {"status": result["status"], "result": result}
    if result["status"] not in FINISHED:
        return facts | dict.fromkeys(_NUMBERS, math.nan)
    return facts | {
        "seed": result["seed"],
        "value": result.get("value"),
        "calls": sum(result["counts"].values()),
        "seconds": result["seconds"] + result["compile_seconds"],
        "MiB": result.get("process", {}).get("peak_memory_mib"),
    }


def _row(task: str, label: str, group: pd.DataFrame) -> Row:
    """Return the row of runs that differ in the seed only."""
    finished: Any = group[group["status"].isin(FINISHED)]
    completed: Any = group[group["status"] == "completed"]
    ended = [result["test_metrics"] for result in finished["result"]]
    metric = next(iter(ended[0])) if ended else "-"
    scores: Any = pd.Series(
        [each.get(metric) for each in ended], list(finished["seed"]), dtype=float
    )
    scores = scores[~scores.index.duplicated(keep="last")]  # made again: the later one counts
    means = finished[["value", "calls", "seconds"]].astype(float).mean()
    other = group.loc[group["status"] != "completed", "status"].value_counts()
    peak = float(finished["MiB"].astype(float).max())
    return Row(
        task=task,
        label=label,
        metric=metric,
        scores=scores,
        completed=completed["seed"].nunique(),
        value=float(means["value"]),
        calls=float(means["calls"]),
        seconds=float(means["seconds"]),
        peak=peak,
        other=other.to_dict(),
        runs=list(group["result"]),
    )


def make_table(found: list[Row]) -> pd.DataFrame:
    """Return one line per row; the last column says who won."""
    lines = []
    best = winners(found)
    for row in found:
        winner = best.get(row.task)
        count = [row.completed, row.completed + sum(row.other.values())]
        score = [row.metric, row.mean, interval(row.scores)]
        cost = [row.value, row.calls, row.seconds, row.peak]
        paired = difference(row, winner)
        lines.append([row.task, row.label, *count, *score, *cost, *paired, verdict(row, winner)])
    return pd.DataFrame(lines, columns=[*COLUMNS, "verdict"])


def winners(found: list[Row]) -> dict[str, Row]:
    """Return the best row of each task that has one: finished, and no run of it unreliable."""
    good = [row for row in found if not row.scores.empty and not row.unreliable]
    return {row.task: row for row in reversed(good)}


def verdict(row: Row, winner: Row | None) -> str:
    """`best`; `as good` where the paired difference over common seeds may be 0; or what failed."""
    failed = ", ".join(f"{count} {status}" for status, count in sorted(row.other.items()))
    if row.scores.empty:
        return failed
    said = "best" if row is winner else ""
    mean, half = difference(row, winner)
    if row is not winner and not row.lost and not row.unreliable and mean <= half:
        said = "as good (95 %)"
    return ", ".join(part for part in (said, failed) if part)


def difference(row: Row, winner: Row | None) -> tuple[float, float]:
    """Mean of score minus the winner's over common seeds, and half the width of its interval."""
    if winner is None:
        return math.nan, math.nan
    differences = (row.scores - winner.scores).dropna()
    return float(differences.mean()), interval(differences)


def interval(numbers: Any) -> float:
    """Half the width of Student's 95 % interval for the mean; NaN for fewer than two numbers."""
    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes a second to import

    numbers = pd.Series(numbers, dtype=float)
    return float(stdtrit(len(numbers) - 1, 0.975) * numbers.sem())


def spread_of(row: Row) -> str:
    """`mean ± half`, for a sentence."""
    half = interval(row.scores)
    return f"{row.mean:.5g}" if math.isnan(half) else f"{row.mean:.5g} ± {half:.2g}"


def _changes(result: dict[str, Any]) -> list[str]:
    """What the command line changed, without the seed; of several for one name, the last."""
    last = {_name(change): change for change in result["overrides"]}
    return [change for name, change in last.items() if name not in SEEDS]


def _name(change: str) -> str:
    return change.split("=")[0].lstrip("+~")


def shown(cell: Any) -> str:
    """Five digits, or a dash for what is not known."""
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:,.0f}" if abs(cell) >= 1e5 else f"{cell:.5g}"
    return str(cell)
