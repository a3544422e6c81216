"""The numbers behind the pictures of a sweep: histories averaged over seeds, and slices."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.table import COUNTS, Row, interval
from experiments.storage.result_file import FINISHED

History = dict[str, np.ndarray]
POINTS = 200  # of a curve that are drawn
ROWS = 12  # of a task that are drawn; the best come first
STEP, CALLS, SECONDS = "outer step", "oracle calls", "seconds, in proportion to steps"
HYPER = "hyper "
# Columns that may be drawn, by what a picture calls them; all but the first on a logarithmic axis.
CURVES = {
    "value": "outer value",
    "grad_norm": "norm of the hypergradient",
    "standard_error": "its standard error",
    "bias": "its bias",
    "relative_error": "its known relative error",
    "inner_residual": "inner residual",
    "linear_residual": "linear residual",
    "derivative_residual": "derivative residual",
    "signal_to_noise": "signal to noise",
    "work": "inner work",
}


def by_task(found: list[Row]) -> dict[str, list[Row]]:
    """The rows with a finished run that are drawn."""
    some = [row for row in found if not row.scores.empty]
    return {task: [row for row in some if row.task == task][:ROWS] for task in names(some)}


def names(found: Iterable[Row]) -> list[str]:
    """Of the tasks, once each."""
    return list(dict.fromkeys(row.task for row in found))


def histories(row: Row) -> list[History]:
    """Of its finished runs, with oracle calls and seconds so far; those that left none are out."""
    ended = [run for run in row.runs if run["status"] in FINISHED and "folder" in run]
    return [_with_costs(rows, run) for run in ended if (rows := read(run["folder"]))]


def _with_costs(history: History, run: dict[str, Any]) -> History:
    n = len(history["value"])
    calls = sum((history[name] for name in COUNTS if name in history), np.zeros(n))
    seconds = (run["seconds"] + run["compile_seconds"]) * np.arange(1, n + 1) / n
    return history | {STEP: np.arange(n), CALLS: np.cumsum(calls), SECONDS: seconds}


def over_seeds(found: list[History]) -> dict[str, np.ndarray]:
    """Column -> mean, minimum and maximum over runs, `(3, points)`, as far as the shortest goes."""
    if not found:
        return {}
    n = min(len(history["value"]) for history in found)
    kept = np.unique(np.linspace(0, n - 1, min(n, POINTS)).round().astype(int))
    spread = {}
    for name in found[0]:
        if all(name in history for history in found):
            rows = np.stack([history[name][:n][kept] for history in found])
            spread[name] = np.stack([rows.mean(0), rows.min(0), rows.max(0)])
    return spread


def numeric(found: list[Row]) -> dict[str, list[tuple[float, float, float, str]]]:
    """Settings that took several numbers: `(number, mean, half width, the rest of the label)`."""
    slices: dict[str, list[tuple[float, float, float, str]]] = {}
    for row in found:
        changes = dict(part.split("=", 1) for part in row.label.split() if "=" in part)
        for name, text in changes.items():
            try:
                number = float(text)
            except ValueError:
                continue
            rest = " ".join(f"{k}={v}" for k, v in changes.items() if k != name)
            half = interval(row.scores)
            slices.setdefault(name, []).append((number, row.mean, half, rest))
    return {n: p for n, p in slices.items() if len({point[0] for point in p}) > 1}


def wide(numbers: list[float]) -> bool:
    """Whether a logarithmic axis suits them."""
    return min(numbers) > 0 and max(numbers) / min(numbers) > 20


def read(folder: Path) -> History:
    """The history of a run; empty where it has none that can be read."""
    import pandas

    try:
        if (path := folder / "history.parquet").is_file():
            table = pandas.read_parquet(path)
        elif (path := folder / "history.csv").is_file():
            table = pandas.read_csv(path)
        else:
            return {}
        found = {str(name): np.asarray(table[name], float) for name in table}
    except (ValueError, TypeError, OSError, KeyError):  # of another program, or half of a file
        return {}
    return found if "value" in found and len(found["value"]) else {}
