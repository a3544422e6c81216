"""What the studies have in common: the command line, the progress bar, the result and its files.

A study is a function `run(sizes, seed, track) -> Result` of plain sizes, so that a test can run a
tiny one in its own process, and one line at its end:

    if __name__ == "__main__":
        sys.exit(command("noise_floor", __doc__, run, FULL, QUICK))

`for item in track(items, "what"): ...` shows a bar. `command` computes in float64, writes
NAME.png, NAME.json, NAME.md and a csv for each table, each of them whole or not at all, and exits
with 0, with 1 where a check has failed (the files are written all the same), with 2 on bad
arguments.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track as bar

from experiments.common.files import write_json, write_whole

Item = TypeVar("Item")
Track = Callable[..., Iterable[Any]]
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """An acceptance figure: `value`, and the sentence that says what it has to be."""

    name: str
    value: Any
    expected: str
    passed: bool

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}: {self.name} is {shown(self.value)}, expected {self.expected}"


def below(name: str, value: float, bound: float) -> Check:
    """The check `value < bound`; NaN fails."""
    return Check(name, float(value), f"less than {bound:g}", bool(value < bound))


def near(name: str, value: float, target: float, tolerance: float) -> Check:
    """The check `|value - target| <= tolerance`; NaN fails."""
    expected = f"{target:.8g} +- {tolerance:.2g}"
    return Check(name, float(value), expected, bool(abs(value - target) <= tolerance))


def order(sizes: Any, errors: Any) -> float:
    """The slope of log errors against log sizes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@dataclass(frozen=True)
class Result:
    """What a study found.

    Parameters
    ----------
    title : heading of the page.
    figure : a matplotlib `Figure`, made with :func:`figure`.
    tables : name -> rows; every row has the same keys, which are the columns.
    findings : one sentence each.
    checks : the acceptance figures.
    numbers : whatever else the JSON should hold, such as the curves of the figure.
    """

    title: str
    figure: Figure
    tables: dict[str, Table]
    findings: list[str]
    checks: list[Check]
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every acceptance figure was met."""
        return all(check.passed for check in self.checks)


def command(
    name: str,
    about: str | None,
    run: Callable[[Any, int, Track], Result],
    full: Any,
    quick: Any,
    arguments: list[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> int:
    """The command line of a study; the exit status.

    ``options`` are switches of its own: the name of a boolean of its sizes, and what it does.
    """
    spec = sys.modules["__main__"].__spec__  # of the study, unless another program calls it
    module = spec.name if spec else ""
    module = module if module.startswith("experiments.") else f"experiments.studies.{name}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = Path("outputs", "studies")
    parser.add_argument("--quick", action="store_true", help="small sizes: tens of seconds")
    parser.add_argument("--out", type=Path, default=folder, help=f"folder to write to ({folder})")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    for switch, what in (options or {}).items():
        parser.add_argument(f"--{switch.replace('_', '-')}", action="store_true", help=what)
    given = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    sizes, start = quick if given.quick else full, time.perf_counter()
    if chosen := {switch: True for switch in options or {} if getattr(given, switch)}:
        sizes = replace(sizes, **chosen)
    track = quiet if given.no_progress else _bars(Console(stderr=True))
    with jax.enable_x64(True):
        result = run(sizes, given.seed, track)
    facts = {"study": name, "quick": given.quick, "seed": given.seed, "sizes": _plain(sizes)}
    facts["seconds"] = round(time.perf_counter() - start, 1)
    text = markdown_page(result)
    console.print(text, markup=False)
    written = write(given.out, name, result, facts, text)
    console.print("written: " + ", ".join(map(str, written)), markup=False)
    return 0 if result.passed else 1


def quiet(items: Iterable[Item], what: str = "", total: float | None = None) -> Iterable[Item]:
    """The `track` that shows nothing."""
    return items


def _bars(console: Console) -> Track:
    def track(items: Iterable[Any], what: str = "", total: float | None = None) -> Iterable[Any]:
        return bar(items, what, total, console=console, disable=not console.is_terminal)

    return track


def _plain(sizes: Any) -> Any:
    return asdict(sizes) if is_dataclass(sizes) and not isinstance(sizes, type) else sizes


def write(
    folder: Path, name: str, result: Result, facts: dict[str, Any], text: str | None = None
) -> list[Path]:
    """Write all files of a study below `folder`; their paths."""
    text = markdown_page(result) if text is None else text
    content = {
        **facts,
        "passed": result.passed,
        "checks": [asdict(check) for check in result.checks],
        "findings": result.findings,
        "tables": result.tables,
        "numbers": result.numbers,
    }
    png, page, numbers = (folder / f"{name}.{ending}" for ending in ("png", "md", "json"))
    write_whole(png, lambda file: result.figure.savefig(file, format="png", dpi=110))
    write_whole(page, lambda file: file.write(text.encode()))
    write_json(numbers, content)
    paths = [png, page, numbers]
    for title, rows in result.tables.items():
        paths.append(folder / f"{name}-{title.replace(' ', '-')}.csv")
        sheet = pd.DataFrame(rows).to_csv(index=False, na_rep="nan")
        write_whole(paths[-1], lambda file, sheet=sheet: file.write(sheet.encode()))
    return paths


def markdown_page(result: Result) -> str:
    """Tables, findings and checks of a study as Markdown."""
    parts = [f"# {result.title}"]
    for title, rows in result.tables.items():
        parts += [f"## {title}", markdown(rows)]
    parts += ["\n".join(f"* {sentence}" for sentence in result.findings)]
    parts += ["\n".join(f"* {check}" for check in result.checks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(rows: Table) -> str:
    """The rows as an aligned Markdown table."""
    lines = [list(rows[0]), *([shown(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def shown(cell: Any) -> str:
    """A cell as people read it: four digits of a number that is no whole one."""
    if hasattr(cell, "item"):
        cell = cell.item()
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure and its `rows x columns` array of axes, with a light grid."""
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.grid(alpha=0.25, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
    return made, axes


def caption(made: Figure, text: str) -> None:
    """A line or two below the figure that say what is drawn."""
    made.supxlabel(text, fontsize=9, color="0.25", x=0.01, ha="left")
