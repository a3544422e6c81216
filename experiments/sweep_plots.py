"""Pictures of a sweep: one line or bar per row of its table, over seeds."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.table import Row, interval

_ROWS = 12  # of a task that are drawn; the best come first
History = dict[str, np.ndarray]


def pictures(found: list[Row]) -> list[tuple[str, bytes]]:
    """`(caption, png)` for each task: scores, then curves; of rows with a completed run."""
    images = []
    for task in dict.fromkeys(row.task for row in found):
        some = [row for row in found if row.task == task and row.scores][:_ROWS]
        if some:
            metric = some[0].metric
            images.append((f"{task}: {metric}, mean and 95 % interval over seeds", scores(some)))
            images += [(f"{task}: mean over seeds", curves(some))]
            images += [
                (f"{task}: {metric} against {name}", slices(name, points, metric))
                for name, points in numeric(some).items()
            ]
    return images


def scores(found: list[Row]) -> bytes:
    """Every seed as a dot, the mean with its interval."""
    figure = _figure(9, 1.2 + 0.4 * len(found))
    axes = figure.subplots()
    for place, row in enumerate(found):
        values = list(row.scores.values())
        axes.plot(values, [place] * len(values), "o", color="tab:gray", alpha=0.5, markersize=4)
        half = interval(values)
        error = None if math.isnan(half) else half
        axes.errorbar(row.mean, place, xerr=error, fmt="D", color="tab:blue", capsize=4)
    axes.set_yticks(range(len(found)), [_short(row.label) for row in found])
    axes.invert_yaxis()
    axes.set_xlabel(f"{found[0].metric} (less is better)")
    axes.grid(alpha=0.3)
    return _png(figure)


def curves(found: list[Row]) -> bytes:
    """Outer value against steps, oracle calls and seconds; and what the evidence says."""
    from matplotlib import colormaps

    figure = _figure(10, 7.5)
    panels = figure.subplots(2, 2)
    for axes in panels.flat:
        axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    for row in found:
        if not (history := _mean([read(run["folder"]) for run in row.runs if _ended(run)])):
            continue
        n = len(history["value"])
        calls = sum(history[c] for c in ("gradients", "hvps", "jvps", "vjps") if c in history)
        seconds = row.seconds * np.arange(1, n + 1) / n
        label = _short(row.label)
        panels[0, 0].plot(np.arange(n), history["value"], label=label)
        panels[0, 1].plot(np.cumsum(calls), history["value"])
        panels[1, 0].plot(seconds, history["value"])
        if "inner_residual" in history:
            panels[1, 1].plot(np.arange(n), history["inner_residual"])
    names = ("outer step", "oracle calls", "seconds (in proportion to steps)", "outer step")
    for axes, name in zip(panels.flat, names, strict=True):
        axes.set(xlabel=name, ylabel="outer value")
        axes.grid(alpha=0.3)
    panels[1, 1].set(ylabel="inner residual (evidence)")
    if panels[1, 1].lines:
        panels[1, 1].set_yscale("log", nonpositive="mask")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return _png(figure)


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
            half = interval(list(row.scores.values()))
            slices.setdefault(name, []).append((number, row.mean, half, rest))
    return {n: p for n, p in slices.items() if len({point[0] for point in p}) > 1}


def slices(name: str, points: list[tuple[float, float, float, str]], metric: str) -> bytes:
    """The score against one setting, a line for each choice of the others."""
    figure = _figure(9, 4)
    axes = figure.subplots()
    for rest in dict.fromkeys(point[3] for point in points):
        x, y, half, _ = zip(*sorted(p for p in points if p[3] == rest), strict=True)
        error = [0.0 if math.isnan(h) else h for h in half]
        axes.errorbar(x, y, yerr=error, marker="o", capsize=3, label=_short(rest) or None)
    numbers = [point[0] for point in points]
    if min(numbers) > 0 and max(numbers) / min(numbers) > 20:
        axes.set_xscale("log")
    axes.set(xlabel=name, ylabel=metric)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return _png(figure)


def read(folder: Path) -> History:
    """The history of a run; empty where it has none."""
    import pandas

    if (path := folder / "history.parquet").is_file():
        table = pandas.read_parquet(path)
    elif (path := folder / "history.csv").is_file():
        table = pandas.read_csv(path)
    else:
        return {}
    return {str(name): np.asarray(table[name], float) for name in table}


def _mean(histories: list[History]) -> History:
    """Over runs, as far as the shortest goes."""
    histories = [history for history in histories if history]
    if not histories:
        return {}
    n = min(len(history["value"]) for history in histories)
    names = set.intersection(*(set(history) for history in histories))
    return {name: np.mean([h[name][:n] for h in histories], axis=0) for name in names}


def _ended(run: dict[str, Any]) -> bool:
    return run["status"] == "completed" and "folder" in run


def _short(label: str, longest: int = 60) -> str:
    return label if len(label) <= longest else f"{label[: longest - 1]}…"


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # the object interface: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
