"""The command `python -m experiments.report FOLDER`: one table of all runs below a folder.

Runs that differ in nothing but the seed are one row: mean of the headline test metric with its
95 % interval over seeds, the cost, and the winner. Written as report.csv, report.parquet,
report.md, pictures (report-*.png), and report.html, one page with interactive charts that
needs no network.

Exit status: 0, or 1 where there is no result, a damaged one, or nothing to export with.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import BadInputError
from experiments.common.files import write_whole
from experiments.reports.export import export
from experiments.reports.table import RULE, make_table, rows, shown
from experiments.storage.resume import read_result

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
        results = read(folder)
        found = rows(results)
        exported = export(folder, results, to) if to else None
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = make_table(found)
    markdown = f"{_markdown(table.map(shown))}\n\n{RULE}\n"
    written = {
        "report.csv": table.to_csv(index=False, na_rep="nan").encode(),
        "report.md": markdown.encode(),
        "report.parquet": table.to_parquet(index=False),
    }
    if page:
        from experiments.reports.page import make_page
        from experiments.reports.sweep_plots import pictures

        title = folder.resolve().name
        written["report.html"] = make_page(title, table, found, again).encode()
        written |= pictures(found)
    for name, content in written.items():
        write_whole(folder / name, lambda file, content=content: file.write(content))
    print(markdown)
    print(f"written: {', '.join(str(folder / name) for name in written)}")
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


def _markdown(table: "pd.DataFrame") -> str:
    """Return the cells, which are texts, as an aligned table."""
    padded = [[name, *column] for name, column in table.items()]
    for column in padded:
        width = max(map(len, column))
        column[:] = [text.ljust(width) for text in column]
        column.insert(1, "-" * width)
    lines = [f"| {' | '.join(line)} |" for line in zip(*padded, strict=True)]
    lines[1] = lines[1].replace(" ", "-")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
