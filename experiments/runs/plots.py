"""`curves.png`: how a run went, at a glance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.files import write_whole
from experiments.runs.trajectory import COLUMN, QUANTILES

_LABELLED = 12  # lines that are named one by one
_LINE = 0.065  # of the height of a panel, which a name needs
EVIDENCE = ("inner_residual", "linear_residual", "derivative_residual", "relative_error")


def curves(path: Path, history: dict[str, np.ndarray], labels: list[str], title: str) -> None:
    """Outer value, hypergradient norm, residuals, and hyperparameters over the outer steps."""
    from matplotlib.figure import Figure  # the object interface: no display, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 7), layout="constrained")
    value, grad, residual, path_of_hyper = figure.subplots(2, 2).flat
    figure.suptitle(title)
    steps = np.arange(len(history["value"]))

    value.plot(steps, history["value"])
    value.set(title="outer value", ylabel="outer loss")
    grad.plot(steps, history["grad_norm"])
    grad.set(title="hypergradient", ylabel="norm")
    _log(grad, history["grad_norm"])
    if "standard_error" in history:
        grad.plot(steps, history["standard_error"], label="its standard error")
        grad.legend()
    for name in EVIDENCE:
        if name in history:
            residual.plot(steps, history[name], label=name.replace("_", " "))
            _log(residual, history[name])
    residual.set(title="evidence: how far it is solved, how wrong it is", ylabel="relative")
    if residual.lines:  # a method that measures none has nothing to name
        residual.legend()
    _hyper(path_of_hyper, steps, history[COLUMN], labels)
    for axes in (value, grad, residual, path_of_hyper):
        axes.set_xlabel("outer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))


def picture(path: Path, draw: Callable[..., None], hyper: Any, params: Any) -> None:
    """`picture.png`: what a task has found, as the task itself draws it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    draw(figure, hyper, params)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100))


def _hyper(axes: Any, steps: np.ndarray, rows: np.ndarray, labels: list[str]) -> None:
    from matplotlib import colormaps

    axes.set(title=f"hyperparameters ({rows.shape[1]})", ylabel="value")
    if labels == list(QUANTILES):
        axes.set_title("hyperparameters (quantiles)")
        axes.fill_between(steps, rows[:, 0], rows[:, 4], alpha=0.15, label="all")
        axes.fill_between(steps, rows[:, 1], rows[:, 3], alpha=0.3, label="middle half")
        axes.plot(steps, rows[:, 2], label="median")
        axes.legend()
        return
    few = len(labels) <= _LABELLED
    axes.margins(x=0.12 if few else 0.05)  # room for the names
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    lines = [axes.plot(steps, column, linewidth=1.5 if few else 0.8)[0] for column in rows.T]
    if not few:
        return
    low, high = axes.get_ylim()
    places = spread((rows[-1] - low) / (high - low), _LINE)
    for label, line, place in zip(labels, lines, places, strict=True):
        axes.annotate(
            label,
            (steps[-1], place),
            xycoords=axes.get_xaxis_transform(),
            color=line.get_color(),
            fontsize=8,
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
        )


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Move places between 0 and 1 apart by at least ``gap``, as little as need be, in their order.

    What has no place, for it is not finite, gets one as if it were 0.
    """
    places = np.where(np.isfinite(places), places, 0.0)
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    moved = np.maximum.accumulate(np.clip(places[order], gap / 2, 1) - steps)
    found = np.empty(len(places))
    found[order] = np.minimum(moved, 1 - gap / 2 - gap * (len(places) - 1)) + steps
    return found


def _log(axes: Any, numbers: np.ndarray) -> None:
    """A logarithmic axis where there is something positive to show."""
    if np.any(numbers > 0):
        axes.set_yscale("log", nonpositive="mask")
