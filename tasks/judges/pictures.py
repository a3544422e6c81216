"""What was found, name by name, as bars in an empty matplotlib figure."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

import bilevel as bl

MOST = 30  # bars that can still be told apart
_FAR = 100.0  # so many times the found penalties an interval is drawn at most
Interval = tuple[np.ndarray, np.ndarray]


def bars(
    figure: Any,
    names: Sequence[str],
    values: Any,
    label: str,
    start: float | None,
    interval: Interval | None = None,
) -> None:
    """Draw one bar for each value, on a logarithmic axis from ``start``; of many, the longest.

    With ``start=None`` values may be negative, and bars leave 0 on a linear axis. ``interval``:
    both ends of one for each value, drawn where they are finite.
    """
    values = np.asarray(values, float).ravel()
    size = np.abs(values) if start is None else np.abs(np.log(values / start))
    shown = np.sort(np.argsort(-size, kind="stable")[:MOST])
    figure.set_figheight(max(figure.get_figheight(), 1 + 0.2 * len(shown)))  # a line for each name
    axes = figure.subplots()
    left = 0.0 if start is None else start
    axes.barh(np.arange(len(shown)), values[shown] - left, left=left, color="C0")
    axes.set_yticks(np.arange(len(shown)), [names[i] for i in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(left, color="black", linewidth=0.8)
    if start is not None:
        axes.set_xscale("log")
        label += f" (logarithmic scale); the line is the start, {start:g}"
    if interval is not None:
        label += _error_bars(axes, values[shown], interval[0][shown], interval[1][shown])
    axes.set_xlabel(label)
    if len(shown) < len(values):
        axes.set_title(f"{len(shown)} of {len(values)}, those that are farthest from the line")
    axes.grid(alpha=0.3, axis="x")


def _error_bars(axes: Any, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Draw intervals beside bars, within the axis as it is and a little more; say what they are."""
    known = np.isfinite(low) & np.isfinite(high)
    x = values[known]
    if not x.size:
        return "; no intervals: the outer loss is flat there, or not at a minimum"
    first, last = axes.get_xlim()
    ends = np.clip((low[known], high[known]), x / _FAR, x * _FAR)
    axes.errorbar(
        x, np.flatnonzero(known), xerr=np.abs(ends - x), fmt="none", ecolor="black", capsize=2
    )
    axes.set_xlim(min(first, ends.min() / 1.2), max(last, ends.max() * 1.2))
    undecided = "" if known.all() else ", none where they do not decide"
    return f"\nlines: 95 % interval over validation rows{undecided}"


def find_interval(problem: bl.Problem, data: bl.Data, hyper: Any, params: Any) -> Interval | None:
    """Return both ends of 95 % intervals of ``exp(hyper)``, flat: another draw of validation rows.

    By :func:`bilevel.confidence`; ``None`` where it does not apply: too many params, for example.
    """
    result: Any = SimpleNamespace(hyper=hyper, params=params)
    try:
        low, high = jax.jit(lambda: bl.confidence(result, problem, data).interval())()
    except ValueError:
        return None
    low, high = (np.exp(np.asarray(end, float)).ravel() for end in (low, high))
    return np.where(low > 0, low, np.nan), high


def _over_folds(each: Callable[[np.ndarray], np.ndarray], log: float) -> Interval | None:
    """Return an interval of one penalty by the spread of the folds' slopes, as if independent.

    ``sd(dl_f / dh) / (sqrt(F) d^2 mean l / dh^2)`` is the standard error of the logarithm.
    """
    h = 0.2  # of a logarithm; smaller, and what fits leave unsolved shows
    less, here, more = each(np.array([log - h, log, log + h]))
    bend = np.mean(more - 2 * here + less) / h**2
    if len(here) < 2 or not bend > 0:
        return None
    error = np.std((more - less) / (2 * h), ddof=1) / np.sqrt(len(here)) / bend
    return np.exp([log - 1.96 * error]), np.exp([log + 1.96 * error])


def curve(
    figure: Any,
    losses: Callable[[np.ndarray], np.ndarray],
    start: float,
    found: float,
    interval: Interval | None = None,
) -> None:
    """Draw the criterion over one penalty, with the point that was found and where it began.

    ``losses`` maps log-penalties ``[k]`` to the outer loss of each fold, ``[k, F]``; the band is
    the mean over folds with its standard error, which says how far the curve can be told from a
    flat one. A hold-out has one fold and no band. The horizontal line is the 95 % interval of the
    penalty: ``interval`` of a hold-out, from the folds' slopes otherwise.
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
        interval = _over_folds(losses, float(np.log(found)))
    if interval is not None and np.isfinite(interval).all():
        limits = axes.get_xlim()
        reach = np.abs(np.clip(np.ravel(interval), found / _FAR, found * _FAR) - found)
        label = f"95 % interval, {interval[0][0]:.2g} to {interval[1][0]:.2g}"
        axes.errorbar(
            found, mean[-1], xerr=reach[:, None], color="C3", capsize=4, alpha=0.6, label=label
        )
        axes.set_xlim(limits)
    axes.plot(found, mean[-1], "o", color="C3", label=f"found, {found:.3g}")
    axes.axvline(start, color="black", linewidth=0.8, label=f"start, {start:g}")
    axes.set(xscale="log", xlabel="penalty (logarithmic scale)", ylabel="outer loss")
    axes.grid(alpha=0.3)
    axes.legend()


def penalties(
    names: Sequence[str],
    start: float,
    losses: Callable[[np.ndarray], np.ndarray] | None,
    held_out: tuple[bl.Problem, bl.Data] | None,
    figure: Any,
    hyper: Any,
    params: Any,
) -> None:
    """Draw ``exp(hyper)``, from the penalty that all of them began at; of one penalty the curve.

    ``held_out``: problem and data of a hold-out, whose rows say how sure the penalties are.
    """
    found = np.exp(np.asarray(hyper, float))
    interval = None if held_out is None else find_interval(*held_out, hyper, params)
    if found.size == 1 and losses is not None:
        curve(figure, losses, start, float(found.ravel()[0]), interval)
    else:
        bars(figure, names, found, "penalty", start, interval)
