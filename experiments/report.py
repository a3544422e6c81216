"""The command `python -m experiments.report FOLDER`: one table of all runs below a folder.

Runs that differ in nothing but the seed are one row: mean of the headline test metric with its
95 % interval over seeds, the cost, and the winner. Written as report.csv, report.parquet (with
pyarrow), report.md, pictures (report-*.png), and report.html, one page with interactive charts that
needs no network.

Exit status: 0, or 1 where there is no result, a damaged one, or nothing to export with.
"""

import argparse
import csv
import importlib.util
import io
import sys
import time
from pathlib import Path
from typing import Any

from experiments.common.errors import BadInputError
from experiments.common.files import write_whole
from experiments.reports.export import export
from experiments.reports.table import RULE, cells, rows, shown
from experiments.storage.resume import read_result


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
        results = read(folder)
        found = rows(results)
        exported = export(folder, results, to) if to else None
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = cells(found)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    markdown = "\n".join(_markdown([[shown(cell) for cell in line] for line in table])) + "\n"
    markdown = f"{markdown}\n{RULE}\n"
    written = {"report.csv": text.getvalue().encode(), "report.md": markdown.encode()}
    if page:
        from experiments.reports import page as html
        from experiments.reports.sweep_plots import pictures

        written["report.html"] = html.page(folder.resolve().name, table, found, again).encode()
        written |= pictures(found)
    for name, content in written.items():
        write_whole(folder / name, lambda file, content=content: file.write(content))
    names = [*written, *_parquet(folder, table)]
    print(markdown)
    print(f"written: {', '.join(str(folder / name) for name in names)}")
    if exported:
        print(f"to look at the runs: {exported}")
    return 0


def read(folder: Path) -> list[dict[str, Any]]:
    """Every result below `folder`, with the `folder` that it was found in.

    Raises
    ------
    BadInputError : there is none, or a damaged one.
    """
    paths = sorted(folder.rglob("result.json"))
    if not paths:
        raise BadInputError(f"{folder}: there is no result.json in or below this folder.")
    return [read_result(path) | {"folder": path.parent} for path in paths]


def _parquet(folder: Path, table: list[list[Any]]) -> list[str]:
    """Written where pyarrow is installed; numbers stay numbers."""
    if not importlib.util.find_spec("pyarrow"):
        return []
    import pyarrow
    import pyarrow.parquet

    header, *lines = table
    columns = zip(*lines, strict=True)
    content = pyarrow.table(dict(zip(header, map(list, columns), strict=True)))
    path = folder / "report.parquet"
    write_whole(path, lambda file: pyarrow.parquet.write_table(content, file))
    return [path.name]


def _markdown(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in table
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


if __name__ == "__main__":
    sys.exit(main())
