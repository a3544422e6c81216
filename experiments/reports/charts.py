"""What the page draws, with plotly: scores, curves, the paths of hyperparameters, slices.

A menu chooses what an axis shows: every choice holds one column per trace. Texts are as the runs
have them; the page escapes them all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, qualitative

from experiments.reports import sweep_data as data
from experiments.reports.table import Row
from experiments.storage.result_file import FINISHED

_COLOURS = qualitative.Dark24  # more than rows are drawn
_COSTS = (data.STEP, data.CALLS, data.SECONDS)
_PLACE, _COST, _MEMORY, _VALUE = "row of the table", "seconds", "MiB", "outer value"
# Buttons for both axes, at the right end of the menus.
_SCALES: dict[str, Any] = {
    "type": "buttons",
    "direction": "right",
    "showactive": False,
    "buttons": [
        {"label": f"{kind} {axis}", "method": "relayout", "args": [{f"{axis}axis.type": kind}]}
        for axis in ("y", "x")
        for kind in ("linear", "log")
    ],
    **{"x": 1, "xanchor": "right", "y": 1.18, "yanchor": "top"},
}
Columns = dict[str, list[Any]]  # what an axis may show -> one column per trace


@dataclass(frozen=True)
class Chart:
    """A plotly figure with its caption."""

    title: str
    about: str
    figure: go.Figure


def make_charts(found: list[Row]) -> list[Chart]:
    """Return the charts of all tasks, in the order of the table."""
    drawn = []
    for task, some in data.by_task(found).items():
        several = f"{task}: " if len(data.names(found)) > 1 else ""
        spreads = {row.label: data.over_seeds(data.histories(row)) for row in some}
        drawn.append(_draw_scores(f"{several}scores", some))
        if any(spreads.values()):
            drawn.append(_draw_curves(f"{several}curves and evidence", spreads))
            drawn.append(_draw_trajectories(f"{several}hyperparameters", spreads))
        for name, points in data.numeric(some).items():
            title = f"{several}slice over {name}"
            drawn.append(_draw_slice(title, name, points, some[0].metric))
    return drawn


def _draw_scores(title: str, found: list[Row]) -> Chart:
    """Draw every finished run as a point: its test metrics against what it cost."""
    completed = [[run for run in row.runs if run["status"] in FINISHED] for row in found]
    traces = [
        go.Scatter(
            name=row.label,
            mode="markers",
            text=[_seed(run) for run in runs],
        )
        for row, runs in zip(found, completed, strict=True)
    ]
    x = {
        _PLACE: [
            [place + 0.02 * i for i in range(len(runs))] for place, runs in enumerate(completed, 1)
        ],
        data.CALLS: [[sum(run["counts"].values()) for run in runs] for runs in completed],
        _COST: [[run["seconds"] + run["compile_seconds"] for run in runs] for runs in completed],
        _MEMORY: [
            [run.get("process", {}).get("peak_memory_mib") for run in runs] for runs in completed
        ],
    }
    y = {
        name: [[run["test_metrics"].get(name) for run in runs] for runs in completed]
        for name in completed[0][0]["test_metrics"]
    }
    y[_VALUE] = [[run["value"] for run in runs] for runs in completed]
    return Chart(title, "One point per finished run.", _figure(traces, x, y))


def _seed(run: dict[str, Any]) -> str:
    bad = "" if run["status"] == "completed" else f", {run['status']}"
    return f"seed {run.get('seed', '-')}{bad}"


def _draw_curves(title: str, spreads: dict[str, dict[str, np.ndarray]]) -> Chart:
    known = [name for name in data.CURVES if any(name in spread for spread in spreads.values())]
    traces: list[go.Scatter] = []
    for place, label in enumerate(spreads):
        traces += _band(label, place)
    x = {cost: _repeated(spread.get(cost) for spread in spreads.values()) for cost in _COSTS}
    y = {data.CURVES[name]: _columns(s.get(name) for s in spreads.values()) for name in known}
    about = "Mean over seeds; shaded from the least to the largest."
    return Chart(title, about, _figure(traces, x, y, logs=[data.CURVES[n] for n in known[1:]]))


def _draw_trajectories(title: str, spreads: dict[str, dict[str, np.ndarray]]) -> Chart:
    """Draw the hyperparameters of one row at a time, which a menu chooses."""
    traces, owners, costs, values = [], [], [], []
    for label, spread in spreads.items():
        names = [name for name in spread if name.startswith(data.HYPER)]
        for place, name in enumerate(names):
            traces += _band(name.removeprefix(data.HYPER), place)
            owners += [label] * 3
            costs.append(spread)
            values.append(spread[name])
    x = {cost: _repeated(spread.get(cost) for spread in costs) for cost in _COSTS}
    figure = _figure(traces, x, {"value": _columns(values)})
    labels = list(dict.fromkeys(owners))
    seen = {label: [owner == label for owner in owners] for label in labels}
    drawn: Any = figure.select_traces()
    for trace, visible in zip(drawn, seen[labels[0]], strict=True):
        trace.visible = visible
    choices = [(label, [{"visible": visible}]) for label, visible in seen.items()]
    _add_menu(figure, "restyle", choices)
    about = "Every hyperparameter of one row of the table, mean over seeds; shaded as above."
    return Chart(title, about, figure)


def _draw_slice(
    title: str, name: str, points: list[tuple[float, float, float, str]], metric: str
) -> Chart:
    traces = []
    for rest in dict.fromkeys(point[3] for point in points):
        x, y, half, _ = zip(*sorted(p for p in points if p[3] == rest), strict=True)
        error = {"type": "data", "array": half}
        traces.append(
            go.Scatter(name=rest or metric, x=x, y=y, error_y=error, mode="lines+markers")
        )
    figure = _figure(traces, {}, {})
    scale = "log" if data.wide([point[0] for point in points]) else "linear"
    figure.update_xaxes(title_text=name, type=scale)
    figure.update_yaxes(title_text=metric)
    return Chart(title, "Mean over seeds with its 95 % interval.", figure)


def _band(name: str, place: int) -> list[go.Scatter]:
    """Return the traces of a mean and of the band around it, which a click hides together."""
    colour = _COLOURS[place % len(_COLOURS)]
    hidden = {"showlegend": False, "hoverinfo": "skip", "mode": "lines", "line": {"width": 0}}
    group, shade = str(place), f"rgba{(*hex_to_rgb(colour), 0.15)}"
    return [
        go.Scatter(name=name, legendgroup=group, mode="lines", line={"color": colour}),
        go.Scatter(legendgroup=group, **hidden),
        go.Scatter(legendgroup=group, fill="tonexty", fillcolor=shade, **hidden),
    ]


def _columns(spreads: Iterable[np.ndarray | None]) -> list[Any]:
    """Return mean, least and largest of each, as the traces of :func:`_band` want them."""
    rows: list[Any] = []
    for spread in spreads:
        rows += [[], [], []] if spread is None else spread.tolist()
    return rows


def _repeated(spreads: Iterable[np.ndarray | None]) -> list[Any]:
    """Return the mean of each for all three traces of a band."""
    rows: list[Any] = []
    for spread in spreads:
        rows += [[] if spread is None else spread[0].tolist()] * 3
    return rows


def _figure(
    traces: list[go.Scatter], x: Columns, y: Columns, logs: Iterable[str] = ()
) -> go.Figure:
    """Return a figure that shows the first choice of each axis, with menus for the others."""
    figure = go.Figure(traces)
    figure.update_layout(
        template="simple_white",
        colorway=_COLOURS,
        margin={"l": 70, "r": 50, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.18},
        modebar={"orientation": "v"},
        updatemenus=[_SCALES],
    )
    for axis, columns in (("y", y), ("x", x)):
        if not columns:
            continue
        choices = []
        for name, rows in columns.items():
            title, kind = f"{axis}axis.title.text", f"{axis}axis.type"
            layout = {title: name, kind: "log" if name in logs else "linear"}
            choices.append((name, [{axis: rows}, layout]))
        drawn: Any = figure.select_traces()
        for trace, column in zip(drawn, choices[0][1][0][axis], strict=True):
            trace[axis] = column
        figure.update_layout(choices[0][1][1])
        if len(choices) > 1:
            _add_menu(figure, "update", choices)
    return figure


def _add_menu(figure: go.Figure, method: str, choices: list[tuple[str, list[Any]]]) -> None:
    """Add a menu to the right of those that the figure has."""
    buttons = [
        {"label": label, "method": method, "args": arguments} for label, arguments in choices
    ]
    menus = figure.layout.updatemenus
    place = {"x": 0.24 * (len(menus) - 1), "xanchor": "left", "y": 1.18, "yanchor": "top"}
    figure.update_layout(updatemenus=[*menus, {"buttons": buttons, **place}])
