"""The command `python -m experiments.report FOLDER`: one table of all runs below a folder.

Runs that differ in nothing but the seed are one row: mean of the headline test metric with its
95 % interval over seeds, the cost, and the winner. Written as report.csv, report.parquet,
report.md, pictures (report-*.png), and report.html, one page with interactive charts that
needs no network.

A damaged result is named and left out. In a folder that cannot be written to, the table is printed.

Exit status: 0, or 1 where there is no result that can be read, or nothing to export with.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import BadInputError, explain_os
from experiments.common.files import write_whole
from experiments.common.pipes import piped
from experiments.reports.export import export
from experiments.reports.table import RULE, make_table, rows, shown
from experiments.storage.result_file import RESULT, read_result

if TYPE_CHECKING:
    import pandas as pd


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the folder in `arguments`, and write it there in every form."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a run, a sweep, or anything above them")
    parser.add_argument("--no-page", action="store_true", help="no report.html, no pictures")
    parser.add_argument("--to", metavar="NAME", help="export too: tensorboard or mlflow")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="again and again")
    given = parser.parse_args(arguments)
    while True:
        status = _once(given.folder, page=not given.no_page, again=given.watch, to=given.to)
        if given.watch is None:
            return status
        try:
            time.sleep(given.watch)
        except KeyboardInterrupt:
            return status


def _once(folder: Path, *, page: bool, again: float | None, to: str | None) -> int:
    try:
        results, damaged = read_all(folder)
        found = rows(results)
        exported = export(folder, results, to) if to else None
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = make_table(found)
    markdown = f"{_markdown(table.map(shown))}\n\n{RULE}\n"
    written = {
        "report.csv": table.map(inert).to_csv(index=False, na_rep="nan").encode(),
        "report.md": markdown.encode(),
        "report.parquet": table.to_parquet(index=False),
    }
    if page:
        from experiments.reports.page import make_page
        from experiments.reports.sweep_plots import pictures

        title = folder.resolve().name
        written["report.html"] = make_page(title, table, found, again, damaged).encode()
        written |= pictures(found)
    refused = _write(folder, written)  # before anything is printed: a reader may go
    print(markdown)
    for sentence in damaged:
        print(f"left out: {sentence}", file=sys.stderr)
    if refused:
        print(f"not written, the table above is all: {refused}", file=sys.stderr)
        return 0
    print(f"written: {', '.join(str(folder / name) for name in written)}")
    if exported:
        print(f"to look at the runs: {exported}")
    return 0


def _write(folder: Path, files: dict[str, bytes]) -> str | None:
    """Write the files; returns why it cannot be done, if so."""
    try:
        for name, content in files.items():
            write_whole(folder / name, lambda file, content=content: file.write(content))
    except OSError as error:
        return explain_os(error)
    return None


def read(folder: Path) -> list[dict[str, Any]]:
    """Every result below `folder` that can be read, with the `folder` that it was found in.

    Raises
    ------
    BadInputError : there is none.
    """
    return read_all(folder)[0]


def read_all(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The results below `folder`, and a sentence for each that is damaged.

    Raises
    ------
    BadInputError : there is none that can be read.
    """
    paths = sorted(folder.rglob(RESULT))
    results, damaged = [], []
    for path in paths:
        try:
            results.append(read_result(path) | {"folder": path.parent})
        except BadInputError as error:
            damaged.append(str(error))
    if not paths:
        raise BadInputError(f"{folder}: there is no {RESULT} in or below this folder.")
    if not results:
        raise BadInputError(damaged[0])
    return results, damaged


def inert(cell: Any) -> Any:
    """Text that a spreadsheet would take for a formula, behind an apostrophe."""
    formula = isinstance(cell, str) and cell != "-" and cell.startswith(("=", "+", "-", "@", "\t"))
    return f"'{cell}" if formula else cell


def _markdown(table: "pd.DataFrame") -> str:
    """Return the cells, which are texts, as an aligned table."""
    plain = table.map(lambda text: " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;"))
    padded = [[name, *column] for name, column in plain.items()]
    for column in padded:
        width = max(map(len, column))
        column[:] = [text.ljust(width) for text in column]
        column.insert(1, "-" * width)
    lines = [f"| {' | '.join(line)} |" for line in zip(*padded, strict=True)]
    lines[1] = lines[1].replace(" ", "-")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(piped(main))
