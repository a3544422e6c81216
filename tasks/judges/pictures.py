"""What was found, name by name, as bars in an empty matplotlib figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 30  # bars that can still be told apart


def bars(figure: Any, names: Sequence[str], values: Any, label: str, start: float | None) -> None:
    """Draw one bar for each value, on a logarithmic axis from ``start``; of many, the longest.

    With ``start=None`` values may be negative, and bars leave 0 on a linear axis.
    """
    values = np.asarray(values, float).ravel()
    size = np.abs(values) if start is None else np.abs(np.log(values / start))
    shown = np.sort(np.argsort(-size, kind="stable")[:MOST])
    axes = figure.subplots()
    left = 0.0 if start is None else start
    axes.barh(np.arange(len(shown)), values[shown] - left, left=left, color="C0")
    axes.set_yticks(np.arange(len(shown)), [names[i] for i in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(left, color="black", linewidth=0.8)
    if start is not None:
        axes.set_xscale("log")
        label += f"; the line is the start, {start:g}"
    axes.set_xlabel(label)
    if len(shown) < len(values):
        axes.set_title(f"{len(shown)} of {len(values)}, those that are farthest from the line")
    axes.grid(alpha=0.3, axis="x")


def penalties(names: Sequence[str], start: float, figure: Any, hyper: Any, params: Any) -> None:
    """Draw ``exp(hyper)``, from the penalty that all of them began at."""
    del params
    bars(figure, names, np.exp(np.asarray(hyper, float)), "penalty", start)
