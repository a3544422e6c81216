"""The report as one HTML page: numbers, style and script are in it, nothing is fetched."""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from experiments.reports.charts import charts, spread_of
from experiments.reports.table import RULE, Row, shown

# The policy makes a browser refuse whatever is not in the page itself.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_HERE = Path(__file__).parent


def page(title: str, table: list[list[Any]], found: list[Row], again: float | None = None) -> str:
    """Winners, table, charts, and what did not complete; `again`: reload after so many seconds."""
    # A script ends at `</`, wherever that stands.
    numbers = json.dumps(charts(found), separators=(",", ":"), allow_nan=False)
    reload = (
        ""
        if again is None
        else (
            f'<p><label><input type="checkbox" id="again" data-seconds="{again}" checked> read again '
            f"every {again:g} s, while the sweep is running</label></p>"
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>{(_HERE / "page.css").read_text(encoding="utf-8")}</style></head><body>
<h1>{escape(title)}</h1>
{reload}{_winners(found)}
<h2>All of them</h2>
<p>One row per combination, mean over seeds. <i>95 %</i>: half the width of Student's interval.
<i>difference</i>: paired with the best row over common seeds, with its own interval
(<i>d 95 %</i>). <i>MiB</i>: the largest memory of a process. Click a heading to sort.</p>
<p><label>show rows with <input type="search" id="filter"></label></p>
<div class="scroll">{_table(table)}</div>
<h2>Charts</h2>
<p>Point at a line for its numbers, draw a frame to see more of it, click a name to hide it.</p>
<noscript>The charts need JavaScript.</noscript>
<div id="plots"></div>
{_failures(found)}
<script type="application/json" id="charts">{numbers.replace("<", chr(92) + "u003c")}</script>
<script>{(_HERE / "page.js").read_text(encoding="utf-8")}</script></body></html>
"""


def _winners(found: list[Row]) -> str:
    """For each task the best row, and how to make one of its runs again."""
    best = {row.task: row for row in reversed(found) if row.scores}
    texts = []
    for task, row in sorted(best.items()):
        commands = [run["command"] for run in row.runs if run.get("command")]
        texts += [
            f"<h2>Best for {escape(task)}: {escape(row.label)}</h2>",
            f"<p>{escape(row.metric)} {spread_of(row)} over {len(row.scores)} seeds.</p>",
            *(f"<pre>{escape(command)}</pre>" for command in commands[:1]),
        ]
    return f"{''.join(texts)}<p>{escape(RULE)}</p>"


def _table(table: list[list[Any]]) -> str:
    header, *lines = table
    head = "".join(f'<th tabindex="0">{escape(name)}</th>' for name in header)
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
