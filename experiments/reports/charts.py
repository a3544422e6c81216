"""What the page draws, as plain numbers: its script (`page.js`) knows one kind of chart.

A chart has `series`; each has `data`, columns by name, of which `x` and `y` list those that the
reader may choose from. `band` holds the least and the largest of a column, `half` half the width of
an interval. Where the series have a `group`, one group is shown at a time.
"""

import math
from typing import Any

import numpy as np

from experiments.reports import sweep_data as data
from experiments.reports.table import Row, interval

Chart = dict[str, Any]
_COSTS = (data.STEP, data.CALLS, data.SECONDS)


def charts(found: list[Row]) -> list[Chart]:
    """Of all tasks, in the order of the table."""
    drawn = []
    for task, some in data.by_task(found).items():
        several = f"{task}: " if len(data.names(found)) > 1 else ""
        spreads = {row.label: data.over_seeds(data.histories(row)) for row in some}
        drawn.append(_scores(f"{several}scores", some))
        if any(spreads.values()):
            drawn.append(_curves(f"{several}curves and evidence", spreads))
            drawn.append(_trajectories(f"{several}hyperparameters", spreads))
        for name, points in data.numeric(some).items():
            drawn.append(_slice(f"{several}slice over {name}", name, points, some[0].metric))
    return _plain(drawn)


def _scores(title: str, found: list[Row]) -> Chart:
    """Every completed run a point: its test metrics against what it cost."""
    completed = [run for run in found[0].runs if run["status"] == "completed"]
    series, metrics = [], list(completed[0]["test_metrics"])
    for place, row in enumerate(found):
        runs = [run for run in row.runs if run["status"] == "completed"]
        columns: dict[str, list[Any]] = {
            "row of the table": [place + 1 + 0.02 * i for i in range(len(runs))],
            data.CALLS: [sum(run["counts"].values()) for run in runs],
            "seconds": [run["seconds"] + run["compile_seconds"] for run in runs],
            "MiB": [run.get("process", {}).get("peak_memory_mib") for run in runs],
            "outer value": [run["value"] for run in runs],
        }
        columns |= {name: [run["test_metrics"].get(name) for run in runs] for name in metrics}
        texts = [f"seed {run.get('seed', '-')}" for run in runs]
        series.append({"name": row.label, "data": columns, "texts": texts, "points": True})
    x = ["row of the table", data.CALLS, "seconds", "MiB"]
    about = "One point per completed run."
    return {"title": title, "about": about, "x": x, "y": [*metrics, "outer value"]} | _of(series)


def _curves(title: str, spreads: dict[str, dict[str, np.ndarray]]) -> Chart:
    series = []
    known = {x for x in data.CURVES if any(x in spread for spread in spreads.values())}
    for label, spread in spreads.items():
        present = {name: spread[name] for name in (*data.CURVES, *_COSTS) if name in spread}
        shown = {data.CURVES.get(name, name): spread for name, spread in present.items()}
        columns = {name: rows[0] for name, rows in shown.items()}
        band = {name: rows[1:] for name, rows in shown.items() if name not in _COSTS}
        series.append({"name": label, "data": columns, "band": band})
    y = [text for name, text in data.CURVES.items() if name in known]
    about = "Mean over seeds; shaded from the least to the largest."
    logs = {"log": y[1:]}
    return {"title": title, "about": about, "x": _COSTS, "y": y} | logs | _of(series)


def _trajectories(title: str, spreads: dict[str, dict[str, np.ndarray]]) -> Chart:
    series = []
    for label, spread in spreads.items():
        costs = {name: spread[name][0] for name in _COSTS if name in spread}
        for name, rows in spread.items():
            if name.startswith(data.HYPER):
                columns = costs | {"value": rows[0]}
                own = {"data": columns, "band": {"value": rows[1:]}, "group": label}
                series.append({"name": name.removeprefix(data.HYPER)} | own)
    about = "Every hyperparameter of one row of the table, mean over seeds; shaded as above."
    return {"title": title, "about": about, "x": _COSTS, "y": ["value"]} | _of(series)


def _slice(
    title: str, name: str, points: list[tuple[float, float, float, str]], metric: str
) -> Chart:
    series = []
    for rest in dict.fromkeys(point[3] for point in points):
        x, y, half, _ = zip(*sorted(p for p in points if p[3] == rest), strict=True)
        columns = {name: x, metric: y}
        own = {"data": columns, "half": {metric: half}, "points": True, "line": True}
        series.append({"name": rest or metric} | own)
    logs = [name] if data.wide([point[0] for point in points]) else []
    about = "Mean over seeds with its 95 % interval."
    return {"title": title, "about": about, "x": [name], "y": [metric], "log": logs} | _of(series)


def _of(series: list[dict[str, Any]]) -> dict[str, Any]:
    return {"series": series}


def spread_of(row: Row) -> str:
    """`mean ± half`, for a sentence."""
    half = interval(list(row.scores.values()))
    return f"{row.mean:.5g}" if math.isnan(half) else f"{row.mean:.5g} ± {half:.2g}"


def _plain(value: Any) -> Any:
    """For JSON: six digits of every number, `None` for what is not finite."""
    if isinstance(value, dict):
        return {name: _plain(child) for name, child in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(child) for child in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
