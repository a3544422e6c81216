"""The figure of `sgd_derivatives`: two rows, four columns and one k axis, as in the paper."""

from typing import Any, NamedTuple

import numpy as np

from experiments.studies import base
from experiments.studies.theory.sgd_regimes import Curves, Regime, find_strong_convexity
from experiments.studies.theory.sgd_runs import Means

SINGLE, WINDOW, ANCHOR = 5, 10, 10_000  # runs in the background, records averaged, where rates meet
FLOORS = (1e-31, 1e-30)  # where rounding ends the fall of squared errors, rounded down


class Column(NamedTuple):
    """What one panel of each row needs.

    ``means`` are at ``steps`` (a pair: suboptimality and Jacobian error), ``single [SINGLE, K, 2]``
    are whole runs at every ``stride`` steps.
    """

    regime: Regime
    curves: Curves
    steps: np.ndarray
    means: list[Means]
    single: np.ndarray
    stride: int


class Look(NamedTuple):
    """What is drawn: the derivative's error as a norm or squared, on a linear or log k axis."""

    squared: bool = False
    log_k: bool = False


def theorem_rates(regime: Regime, count: int) -> dict[str, np.ndarray]:
    """Return the rates of squared errors that the theorem states, up to their constants.

    ``1/k`` and ``log(k)^2 / k`` with ``k + 8 kappa^2`` for k, or ``(1 - mu eta)^k``; ``[count]``.
    """
    mu, k = find_strong_convexity(regime.A), np.arange(1, count + 1)
    if regime.name == "decreasing step":
        t = k + 8 / mu**2
        return {"1/k": 1 / t, "log(k)^2 / k": np.log(t) ** 2 / t}
    if regime.name == "constant step":
        return {}
    return {"(1 - mu eta)^k": (1 - mu * regime.steps[0]) ** k.astype(float)}


def smooth_runs(runs: np.ndarray, window: int) -> np.ndarray:
    """Return the geometric mean over ``window`` neighbouring records of ``runs [R, K]``."""
    window = min(window, runs.shape[1])
    sums = np.cumsum(np.pad(np.log(np.maximum(runs, 1e-300)), ((0, 0), (1, 0))), axis=1)
    return np.exp((sums[:, window:] - sums[:, :-window]) / window)


def draw_regimes(columns: list[Column], last: int, runs: int, look: Look, caption: str) -> Any:
    """Return the figure; ``last`` is where the k axis ends, ``runs`` how many were averaged."""
    figure, axes = base.figure(2, len(columns), 14, 7)
    for column, pair in zip(columns, axes.T, strict=True):
        for row, at in enumerate(pair):
            _draw_panel(at, column, row, last, runs, 1.0 if row == 0 or look.squared else 0.5)
            at.set_yscale("log")
            at.set_xscale("log" if look.log_k else "linear")
            at.set_xlim(1 if look.log_k else 0, last)
            at.set_xlabel("step k")
            if not look.log_k:
                at.set_xticks([0, last // 2, last])
        pair[0].set_title(column.regime.name)
    axes[0, 0].set_ylabel(r"suboptimality  $E\,f(x_k) - f^\star$")
    error = r"E\,\|D_k - D^\star\|_F^2"
    axes[1, 0].set_ylabel(
        rf"Jacobian error  ${error}$" if look.squared else rf"Jacobian error  $({error})^{{1/2}}$"
    )
    entries = {}
    for at in axes.flat:
        handles, labels = at.get_legend_handles_labels()
        entries |= {label: entries.get(label, h) for h, label in zip(handles, labels, strict=True)}
    figure.legend(
        list(entries.values()), list(entries), loc="outside upper center", ncols=4, fontsize=9
    )
    base.caption(figure, caption)
    return figure


def _draw_panel(at: Any, column: Column, row: int, last: int, runs: int, power: float) -> None:
    regime, curves = column.regime, column.curves
    exact, bound = curves.exact[row], curves.bound[row]
    whole = np.geomspace(1, last, 900), np.linspace(1, last, 900)
    k = np.unique(np.concatenate(whole).astype(int))
    visible = k[exact[k - 1] > FLOORS[row]]
    smooth = smooth_runs(column.single[..., row], WINDOW) ** power
    middle = column.stride * (np.arange(smooth.shape[1]) + (WINDOW + 1) / 2)
    for number, run in enumerate(smooth):
        label = f"single runs, smoothed over {WINDOW * column.stride} steps" if not number else None
        at.plot(middle, run, color="0.7", linewidth=0.7, label=label, zorder=1)
    above, label = k[bound[k - 1] > FLOORS[row]], "bound, constants reconstructed"
    at.plot(above, bound[above - 1] ** power, ":", color="C3", label=label)
    at.plot(visible, exact[visible - 1] ** power, color="C0", linewidth=2, label="exact moment")
    inside = column.steps <= last
    found, style = column.means[row], {"linestyle": "none", "zorder": 3}
    label = f"mean of {runs} runs"
    at.plot(
        column.steps[inside],
        found.mean[inside] ** power,
        marker="o",
        color="k",
        markersize=3,
        label=label,
        **style,
    )
    at.plot(
        column.steps[inside],
        found.median[inside] ** power,
        marker="_",
        color="C2",
        markersize=7,
        label="median of the runs",
        **style,
    )
    if not (row and regime.name == "simple interpolation"):  # whose derivative keeps a floor
        _draw_rates(at, regime, exact, k, power, row)
    if "interpolation" in regime.name and exact[last - 1] < FLOORS[row]:
        at.set_ylim(bottom=FLOORS[row] ** power)


def _draw_rates(
    at: Any, regime: Regime, exact: np.ndarray, k: np.ndarray, power: float, row: int
) -> None:
    """Draw the theorem's rates: through the exact curve at ANCHOR, or from its first step on."""
    names = {
        "1/k": ("$1/k$ (norm $k^{-1/2}$)", "--", "C1"),
        "log(k)^2 / k": (r"$\log(k)^2 / k$ (norm $\log(k)\, k^{-1/2}$)", "-.", "C4"),
        "(1 - mu eta)^k": (r"$(1 - \mu\eta)^k$ (norm $(1 - \mu\eta)^{k/2}$)", "--", "C6"),
    }
    for name, rate in theorem_rates(regime, len(exact)).items():
        if row == 0 and "log" in name:
            continue  # stated of the derivative alone
        meets = min(ANCHOR, len(exact)) if regime.name == "decreasing step" else 1
        label, style, color = names[name]
        line = exact[meets - 1] * rate[k - 1] / rate[meets - 1]
        seen = (k >= meets / 10) & (line > FLOORS[row])
        at.plot(k[seen], line[seen] ** power, style, color=color, label=f"rate {label}")
