"""The figure of `sgd_curved`: a row for each loss; four regimes, and the logarithm."""

from typing import Any

import numpy as np

from experiments.studies import base
from experiments.studies.theory.curved_runs import DECREASING, Outcome
from experiments.studies.theory.sgd_figure import FLOORS, SINGLE, WINDOW, smooth_runs


def draw_curved(shown: dict[str, list[Outcome]], caption: str) -> Any:
    """Return the figure; every loss has four outcomes and the control."""
    figure, axes = base.figure(len(shown), 5, 16.5, 7)
    for (loss, outcomes), row in zip(shown.items(), axes, strict=True):
        for outcome, at in zip(outcomes[:4], row, strict=False):
            _draw_errors(at, outcome)
            at.set_title(f"{loss}: {outcome.case.name}", fontsize=10)
        _draw_logarithm(row[4], outcomes[1], outcomes[4])
        row[4].set_title(f"{loss}: is it flat?", fontsize=10)
        row[0].set_ylabel(r"Jacobian error  $(E\,\|D_k - D^\star\|_F^2)^{1/2}$")
    entries = {}
    for at in axes.flat:
        handles, labels = at.get_legend_handles_labels()
        entries |= {label: entries.get(label, h) for h, label in zip(handles, labels, strict=True)}
    figure.legend(
        list(entries.values()), list(entries), loc="outside upper center", ncols=5, fontsize=9
    )
    base.caption(figure, caption)
    return figure


def choose_records(count: int, most: int = 40) -> np.ndarray:
    """Return about ``most`` of ``count`` records, evenly in ``log k``."""
    return np.unique(np.geomspace(1, count, most).round().astype(int)) - 1


def _draw_errors(at: Any, outcome: Outcome) -> None:
    expected, bound = outcome.expected[:, 1] ** 0.5, outcome.bound[:, 1] ** 0.5
    floor, last = FLOORS[1] ** 0.5, len(expected)
    k = np.unique(np.geomspace(1, last, 600).astype(int))
    smooth = smooth_runs(outcome.found[:SINGLE, :, 1], WINDOW) ** 0.5
    middle = outcome.stride * (np.arange(smooth.shape[1]) + (WINDOW + 1) / 2)
    for run in smooth:
        at.plot(middle, run, color="0.7", linewidth=0.7, label="single runs, smoothed", zorder=1)
    for values, style, color, label in (
        (bound, ":", "C3", "bound, constants reconstructed"),
        (expected, "-", "C0", "moments linearised at the solution"),
    ):
        seen = k[values[k - 1] > floor]
        at.plot(seen, values[seen - 1], style, color=color, label=label)
    records = choose_records(outcome.found.shape[1])
    means = outcome.found.mean(0)[records, 1] ** 0.5
    steps = outcome.stride * (records + 1)
    at.plot(steps, means, "o", color="k", markersize=3, label="mean of the runs", zorder=3)
    at.set_yscale("log")
    at.set_xscale("log" if outcome.case.name == DECREASING else "linear")
    at.set_xlabel("step k")


def _draw_logarithm(at: Any, outcome: Outcome, control: Outcome) -> None:
    """Draw ``t E |D_k - D*|^2``: flat, or like ``log(t)^2``, and the control beside it."""
    last = len(outcome.expected)
    k = np.unique(np.geomspace(100, last, 300).astype(int))
    named = (outcome, "C0", None), (control, "C2", r"control: step $1/(2\lambda t)$")
    for each, color, label in named:
        t = k + each.offset
        at.plot(t, t * each.expected[k - 1, 1] / _scale(each), color=color, label=label)
        records = choose_records(each.found.shape[1], 30)
        t = each.stride * (records + 1) + each.offset
        values = each.found[:, records, 1] * t / _scale(each)
        error = 2 * values.std(0, ddof=1) / len(values) ** 0.5
        style = {"fmt": "o", "color": color, "ecolor": "k", "markersize": 3}
        at.errorbar(t, values.mean(0), error, **style)
    t = np.geomspace(last / 10, last, 50)
    at.plot(
        t,
        (np.log(t) / np.log(t[0])) ** 2,
        "-.",
        color="C4",
        label=r"$\log(t)^2$, if the theorem's rate were met",
    )
    at.set_xscale("log")
    at.set_ylim(0, 2.2)
    at.set_xlabel(r"$t = k + 8\kappa^2$")
    at.set_ylabel(r"$t\,E\,\|D_k - D^\star\|_F^2$ over its value at $T / 10$")


def _scale(outcome: Outcome) -> float:
    """Return the expected ``t E`` where the last decade of ``k`` begins."""
    k = len(outcome.expected) // 10
    return float((k + outcome.offset) * outcome.expected[k - 1, 1])
