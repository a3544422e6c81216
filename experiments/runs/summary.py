"""The last thing that a run prints: what was found, against what a user would run otherwise."""

import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.reports.table import Row, interval
from experiments.storage.result_file import FINISHED
from experiments.sweeps.ending import percent

OURS = "bilevel, this run"
MANY = "bilevel, these runs"


def show(console: Console, result: dict[str, Any], files: list[Path]) -> None:
    """Print the result as in `result.json`, and where its files are."""
    console.print()
    console.print(comparison(result))
    _line(console, "estimator", result.get("chosen", ""))
    _line(console, "hyperparameters", numbers(result["hyper_summary"]))
    _line(
        console,
        "outer value",
        f"{number(result['value_start'])} -> {number(result['value'])} in {result['steps']} steps",
    )
    _line(console, "evidence", numbers(result["evidence"]))
    _line(console, "known error", known_error(result))
    for check in result["checks"]:
        _line(
            console,
            "closed form",
            f"hypergradient at step {check['step']}: relative error {number(check['grad_error'])}, "
            f"cosine {check['cosine']:.6f} (exact norm {number(check['grad_norm'])})",
        )
    _line(console, "cost", numbers({k: v for k, v in result["counts"].items() if v}))
    _line(
        console,
        "time",
        f"{result['seconds']:.1f} s running, {result['compile_seconds']:.1f} s compiling",
    )
    for remark in result["notes"].get("remarks", ()):
        _line(console, "table", remark)
    for path in files:
        _line(console, path.stem, str(path))
    if result["message"]:
        console.print(f"\n{result['status']}: {result['message']}", highlight=False, markup=False)


def comparison(result: dict[str, Any]) -> Table:
    """Test metrics of the tuned model and of every baseline, best first; the first metric decides.

    Less of the first metric is better; that is the convention of a task.
    """
    rows = {OURS: result["test_metrics"], **result["baselines"]}
    metrics = list(result["test_metrics"])
    table = Table(title=f"{result['task']}: test data, best first", title_justify="left")
    table.add_column("method")
    for name in metrics:
        table.add_column(escape(name), justify="right")
    for name, row in sorted(rows.items(), key=lambda item: _rank(item[1].get(metrics[0]))):
        style = "bold" if row is result["test_metrics"] else None
        table.add_row(escape(name), *(number(row.get(metric)) for metric in metrics), style=style)
    return table


def show_many(console: Console, found: list[Row]) -> None:
    """Print one table for each group of runs that differ in the seed alone."""
    for row in found:
        if not row.scores.empty:
            console.print(over_seeds(row))


def over_seeds(row: Row) -> Table:
    """Mean and 95 % interval over seeds of every metric, of the tuned models and of every baseline.

    The last column is the headline's difference from ours, seed by seed: its interval is the one
    that says who is better, as all methods see the same rows.
    """
    completed = [run for run in row.runs if run["status"] in FINISHED]
    methods = {MANY: [run["test_metrics"] for run in completed]}
    for name in completed[0]["baselines"]:
        scores = [run["baselines"].get(name) for run in completed]
        methods[name] = [score for score in scores if score is not None]
    metrics = list(completed[0]["test_metrics"])
    of = f"{row.task} {row.label}".removesuffix(" -")
    table = Table(title=f"{of}: {len(completed)} seeds, mean and 95 %", title_justify="left")
    for name in ("method", *metrics, f"{row.metric}: difference"):
        table.add_column(escape(name), justify="left" if name == "method" else "right")

    def spread(scores: list[Any]) -> tuple[float, str]:
        if not scores or any(_rank(x) == math.inf for x in scores):
            return math.inf, "-"
        mean, half = statistics.fmean(scores), interval(scores)
        return mean, number(mean) if math.isnan(half) else f"{number(mean)} ± {half:.2g}"

    lines = []
    for name, scores in methods.items():
        columns = [spread([score.get(metric) for score in scores]) for metric in metrics]
        paired = (
            []
            if name == MANY or len(scores) < len(completed)
            else [
                their.get(row.metric, math.nan) - our[row.metric]
                for their, our in zip(scores, methods[MANY], strict=True)
            ]
        )
        lines.append((columns[0][0], name, [text for _, text in columns], spread(paired)[1]))
    for _, name, texts, paired in sorted(lines, key=lambda line: line[0]):
        style = "bold" if name == MANY else None
        table.add_row(escape(name), *texts, paired, style=style)
    return table


def known_error(result: dict[str, Any]) -> str:
    """`90 %, of the largest hypergradient 2 %; not measured: noise of the inner solver`."""
    if not result.get("notes", {}).get("has_minimiser", True):
        return ""  # the evidence holds a training that goes on against one
    error, unknown = result.get("relative_error"), ", ".join(result.get("unknown", ()))
    known = "" if error is None or math.isnan(error) else percent(error)
    if known and (share := result.get("error_of_largest")) is not None:
        known += f", of the largest hypergradient {percent(share)}"
    return "; ".join(part for part in (known, unknown and f"not measured: {unknown}") if part)


def _rank(x: float | None) -> float:
    return x if x is not None and math.isfinite(x) else math.inf


def numbers(named: dict[str, float | None]) -> str:
    """`a 1.5, b 2`."""
    return ", ".join(f"{name.replace('_', ' ')} {number(x)}" for name, x in named.items())


def number(x: float | None) -> str:
    """Five digits, and a dash for what is not known."""
    if x is None:
        return "-"
    return f"{x:,}" if isinstance(x, int) else f"{x:.5g}"


def _line(console: Console, label: str, text: str) -> None:
    if text:
        console.print(f"{label:16}{text}", highlight=False, markup=False, soft_wrap=True)
