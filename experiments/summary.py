"""The last thing that a run prints: what was found, against what a user would run otherwise."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


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
    for path in files:
        _line(console, path.stem, str(path))
    if result["message"]:
        console.print(f"\n{result['status']}: {result['message']}", highlight=False, markup=False)


def comparison(result: dict[str, Any]) -> Table:
    """Test metrics of the tuned model and of every baseline, best first; the first metric decides.

    Less of the first metric is better; that is the convention of a task.
    """
    rows = {"bilevel, this run": result["test_metrics"], **result["baselines"]}
    metrics = list(result["test_metrics"])
    table = Table(title=f"{result['task']}: test data, best first", title_justify="left")
    table.add_column("method")
    for name in metrics:
        table.add_column(escape(name), justify="right")
    for name, row in sorted(rows.items(), key=lambda item: _rank(item[1].get(metrics[0]))):
        style = "bold" if row is result["test_metrics"] else None
        table.add_row(escape(name), *(number(row.get(metric)) for metric in metrics), style=style)
    return table


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
