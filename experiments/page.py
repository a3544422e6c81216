"""The report as one HTML page: pictures and script are in it, nothing is fetched."""

import base64
import math
from html import escape
from typing import Any

from experiments.sweep_plots import pictures
from experiments.table import Row, shown

# The policy makes a browser refuse whatever is not in the page itself.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; }
body { padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; }
th { cursor: pointer; user-select: none; white-space: nowrap; background: #f4f4f4; }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.best { background: #eaf6ea; } .scroll { overflow-x: auto; }
img { max-width: 100%; } figure { margin: 2rem 0; } figcaption { font-weight: 600; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap; }
"""
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], place = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const order = (a, b) => {
    const x = key(a), y = key(b), numbers = [Number(x), Number(y)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const less = numbers.some(Number.isNaN) ? x.localeCompare(y) : numbers[0] - numbers[1];
    return up ? less : -less;
  };
  body.append(...[...body.rows].sort(order));
});
"""


def page(title: str, table: list[list[Any]], found: list[Row]) -> str:
    """Table, pictures, and what did not complete."""
    images = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}"></figure>'
        for caption, png in pictures(found)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>One row per combination, mean over seeds. Less of the metric is better. <i>95 %</i>: half the
width of Student's interval. <i>difference</i>: paired with the best row over common seeds, with its
own interval (<i>d 95 %</i>); <i>as good</i> where that interval reaches 0. Intervals are not
corrected for the number of rows. Click a heading to sort.</p>
<div class="scroll">{_table(table)}</div>
{images}
{_failures(found)}
<script>{_SCRIPT}</script></body></html>
"""


def _table(table: list[list[Any]]) -> str:
    header, *lines = table
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = []
    for line in lines:
        best = ' class="best"' if str(line[-1]).startswith("best") else ""
        rows.append(f"<tr{best}>{''.join(map(_cell, line))}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(cell: Any) -> str:
    if isinstance(cell, int | float):
        value = "" if math.isnan(cell) else repr(cell)
        return f'<td class="number" data-value="{value}">{shown(cell)}</td>'
    return f"<td>{escape(str(cell))}</td>"


def _failures(found: list[Row]) -> str:
    """What the other runs said."""
    texts = [
        f"<h3>{escape(row.label)}, seed {escape(str(run.get('seed', '-')))}: {run['status']}</h3>"
        f"<pre>{escape(run.get('error') or run.get('message') or 'no result yet')}</pre>"
        for row in found
        for run in row.runs
        if run["status"] != "completed"
    ]
    return f"<h2>Not completed</h2>{''.join(texts)}" if texts else ""
