"""Pictures of a sweep as PNG files: one line or bar per row of its table, over seeds."""

import io
import math
import re
from typing import Any

from experiments.reports import sweep_data as data
from experiments.reports.table import Row, interval

_UNSAFE = re.compile(r"[^\w.-]+")  # in the name of a file


def pictures(found: list[Row]) -> dict[str, bytes]:
    """File name -> PNG: for each task scores, curves, trajectories of the first row, and slices."""
    images = {}
    for task, some in data.by_task(found).items():
        images[f"{task}-scores"] = scores(some)
        spreads = [data.over_seeds(data.histories(row)) for row in some]
        if any(spreads):
            images[f"{task}-curves"] = curves(some, spreads)
            images[f"{task}-trajectories"] = trajectories(some[0], spreads[0])
        for name, points in data.numeric(some).items():
            images[f"{task}-{name}"] = slices(name, points, some[0].metric)
    return {f"report-{_UNSAFE.sub('_', name)[:150]}.png": png for name, png in images.items()}


def scores(found: list[Row]) -> bytes:
    """Every seed as a dot, the mean with its interval."""
    figure = _figure(9, 1.2 + 0.4 * len(found))
    axes = figure.subplots()
    for place, row in enumerate(found):
        values = row.scores
        axes.plot(values, [place] * len(values), "o", color="tab:gray", alpha=0.5, markersize=4)
        half = interval(values)
        error = None if math.isnan(half) else half
        axes.errorbar(row.mean, place, xerr=error, fmt="D", color="tab:blue", capsize=4)
    axes.set_yticks(range(len(found)), [_short(row.label) for row in found])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"{_short(found[0].metric)} (less is better), mean and 95 % interval over seeds"
    )
    axes.grid(alpha=0.3)
    return _png(figure)


def curves(found: list[Row], spreads: list[dict[str, Any]]) -> bytes:
    """Outer value against steps, oracle calls and seconds; and what the evidence says."""
    from matplotlib import colormaps

    figure = _figure(10, 7.5)
    panels = figure.subplots(2, 2)
    known = ("relative_error", "standard_error", "inner_residual")
    evidence = next((name for name in known if name in spreads[0]), None)
    shown = [(data.STEP, "value"), (data.CALLS, "value"), (data.SECONDS, "value")]
    for axes, (x, y) in zip(panels.flat, [*shown, (data.STEP, evidence)], strict=True):
        axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
        for row, spread in zip(found, spreads, strict=True):
            if y in spread:
                label = _short(row.label) if axes is panels[0, 0] else None
                (line,) = axes.plot(spread[x][0], spread[y][0], label=label)
                axes.fill_between(spread[x][0], *spread[y][1:], alpha=0.1, color=line.get_color())
        axes.set(xlabel=x, ylabel=data.CURVES.get(y or "", "no evidence"))
        axes.grid(alpha=0.3)
    if panels[1, 1].lines:
        panels[1, 1].set_yscale("log", nonpositive="mask")
    figure.suptitle("mean over seeds; shaded from the least to the largest")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return _png(figure)


def trajectories(row: Row, spread: dict[str, Any]) -> bytes:
    """Every hyperparameter over the outer steps, mean over seeds."""
    figure = _figure(9, 4.5)
    axes = figure.subplots()
    lines = [name for name in spread if name.startswith(data.HYPER)]
    for name in lines:
        axes.plot(
            spread[data.STEP][0], spread[name][0], label=_short(name.removeprefix(data.HYPER))
        )
    axes.set(xlabel=data.STEP, ylabel="hyperparameter", title=f"first row: {_short(row.label)}")
    axes.grid(alpha=0.3)
    if 0 < len(lines) <= 24:
        figure.legend(loc="outside right center", fontsize=8)
    return _png(figure)


def slices(name: str, points: list[tuple[float, float, float, str]], metric: str) -> bytes:
    """The score against one setting, a line for each choice of the others."""
    figure = _figure(9, 4)
    axes = figure.subplots()
    for rest in dict.fromkeys(point[3] for point in points):
        x, y, half, _ = zip(*sorted(p for p in points if p[3] == rest), strict=True)
        error = [0.0 if math.isnan(h) else h for h in half]
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label=_short(rest) or None)
    if data.wide([point[0] for point in points]):
        axes.set_xscale("log")
    axes.set(xlabel=_short(name), ylabel=_short(metric))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return _png(figure)


def _short(label: str, longest: int = 60) -> str:
    """Return the label cut to what fits; matplotlib takes what stands between dollars for maths."""
    short = label if len(label) <= longest else f"{label[: longest - 1]}…"
    return short.replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # the object interface: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
