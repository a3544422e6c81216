"""What was found, name by name, as bars in an empty matplotlib figure."""

from collections.abc import Callable, Sequence
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
        label += f" (logarithmic scale); the line is the start, {start:g}"
    axes.set_xlabel(label)
    if len(shown) < len(values):
        axes.set_title(f"{len(shown)} of {len(values)}, those that are farthest from the line")
    axes.grid(alpha=0.3, axis="x")


def curve(
    figure: Any, losses: Callable[[np.ndarray], np.ndarray], start: float, found: float
) -> None:
    """Draw the criterion over one penalty, with the point that was found and where it began.

    ``losses`` maps log-penalties ``[k]`` to the outer loss of each fold, ``[k, F]``; the band is
    the mean over folds with its standard error, which says how far the curve can be told from a
    flat one. A hold-out has one fold and no band.
    """
    ends = np.log(sorted((start, found)))
    grid = np.linspace(ends[0] - 4.6, ends[1] + 4.6, 31)  # two decades to either side
    each = losses(np.append(grid, np.log(found)))
    mean = each.mean(1)
    axes = figure.subplots()
    axes.plot(np.exp(grid), mean[:-1], color="C0", label="outer loss")
    if (folds := each.shape[1]) > 1:
        error = each.std(1, ddof=1) / np.sqrt(folds)
        label = f"standard error over {folds} folds"
        axes.fill_between(
            np.exp(grid), (mean - error)[:-1], (mean + error)[:-1], alpha=0.2, label=label
        )
        axes.errorbar(found, mean[-1], yerr=error[-1], color="C3", capsize=4)
    axes.plot(found, mean[-1], "o", color="C3", label=f"found, {found:.3g}")
    axes.axvline(start, color="black", linewidth=0.8, label=f"start, {start:g}")
    axes.set(xscale="log", xlabel="penalty (logarithmic scale)", ylabel="outer loss")
    axes.grid(alpha=0.3)
    axes.legend()


def penalties(
    names: Sequence[str],
    start: float,
    losses: Callable[[np.ndarray], np.ndarray] | None,
    figure: Any,
    hyper: Any,
    params: Any,
) -> None:
    """Draw ``exp(hyper)``, from the penalty that all of them began at; of one penalty the curve."""
    del params
    found = np.exp(np.asarray(hyper, float))
    if found.size == 1 and losses is not None:
        curve(figure, losses, start, float(found.ravel()[0]))
    else:
        bars(figure, names, found, "penalty", start)
