"""The report as one HTML page: numbers, style and script are in it, nothing is fetched."""

import json
import shlex
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.reports.charts import Chart, make_charts
from experiments.reports.table import RULE, Row, shown, spread_of, winners

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = Path(__file__).parent
_CONFIG = {"displaylogo": False, "responsive": True}


def make_page(
    title: str,
    table: "pd.DataFrame",
    found: list[Row],
    again: float | None = None,
    damaged: Sequence[str] = (),
) -> str:
    """Return the page: winners, table, charts, and what did not complete or is unreliable.

    Whatever comes from a run is data. The template escapes all that it is given; charts lie in a
    block that no browser runs, with every text in them escaped. A browser runs the two scripts
    whose hashes are in the page's policy, which are the same in every page, and fetches nothing.

    Parameters
    ----------
    title : heading of the page.
    table, found : the lines of the table, and the rows that they are of.
    again : reload after so many seconds.
    damaged : what was left out, a sentence each.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["shown"] = shown
    charts = make_charts(found)
    scripts = get_plotlyjs(), (_FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        title=title,
        policy=_make_policy(scripts),
        again=again,
        winners=_winners(found),
        rule=RULE,
        header=list(table.columns),
        lines=table.values.tolist(),
        scripts=[Markup(script) for script in scripts],
        charts=charts,
        figures=Markup(_as_data(charts)),
        failures=_failures(found),
        damaged=damaged,
    )


def _make_policy(scripts: Iterable[str]) -> str:
    """Make a browser run these scripts and no other, and refuse what is not in the page itself."""
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; "
        f"style-src 'unsafe-inline'; script-src {allowed}"
    )


def _as_data(charts: list[Chart]) -> str:
    """Return figures as JSON that stands within a script element and ends it nowhere."""
    figures = [json.loads(str(chart.figure.to_json())) | {"config": _CONFIG} for chart in charts]
    return json.dumps(escaped(figures)).replace("<", "\\u003c")


def escaped(value: Any) -> Any:
    """Every text within with its markup escaped: plotly reads tags in names, titles and labels."""
    if isinstance(value, dict):
        return {key: escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [escaped(child) for child in value]
    return escape(value, quote=False) if isinstance(value, str) else value


def _winners(found: list[Row]) -> list[dict[str, Any]]:
    """Return for each task the best row, and how to make one of its runs again."""
    best = winners(found)
    return [
        {
            "row": row,
            "spread": spread_of(row),
            "command": next((c for run in row.runs if (c := _command(run))), None),
        }
        for _, row in sorted(best.items())
    ]


def _command(run: dict[str, Any]) -> str | None:
    """Return what makes the run again, if it is that and nothing else: somebody will paste it."""
    command = run.get("command") or ""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    ours = words[:3] == ["python", "-m", "experiments.run"] and shlex.join(words) == command
    return command if ours else None


def _failures(found: list[Row]) -> list[dict[str, str]]:
    """Return what the other runs said."""
    return [
        {
            "label": row.label,
            "seed": str(run.get("seed", "-")),
            "status": run["status"],
            "text": run.get("error") or run.get("message") or "no result yet",
        }
        for row in found
        for run in row.runs
        if run["status"] != "completed"
    ]
