"""The report as one HTML page: numbers, style and script are in it, nothing is fetched."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.reports.charts import Chart, make_charts
from experiments.reports.table import RULE, Row, shown, spread_of, winners

if TYPE_CHECKING:
    import pandas as pd

# The policy makes a browser refuse whatever is not in the page itself.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
_CONFIG = {"displaylogo": False, "responsive": True}


def make_page(
    title: str, table: "pd.DataFrame", found: list[Row], again: float | None = None
) -> str:
    """Return the page: winners, table, charts, and what did not complete or is unreliable.

    The template escapes whatever it is given; only what plotly has made goes in as it is.

    Parameters
    ----------
    title : heading of the page.
    table, found : the lines of the table, and the rows that they are of.
    again : reload after so many seconds.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["shown"] = shown
    charts = make_charts(found)
    return environment.get_template("page.html").render(
        title=title,
        policy=_POLICY,
        again=again,
        winners=_winners(found),
        rule=RULE,
        header=list(table.columns),
        lines=table.values.tolist(),
        plotly=Markup(get_plotlyjs()),
        charts=[
            {"title": chart.title, "about": chart.about, "html": Markup(_html(chart, number))}
            for number, chart in enumerate(charts)
        ],
        failures=_failures(found),
    )


def _html(chart: Chart, number: int) -> str:
    """Return a chart as plotly writes it, without plotly's script: the page holds that once."""
    return chart.figure.to_html(
        _CONFIG,
        full_html=False,
        include_plotlyjs=False,
        default_height="440px",
        div_id=f"chart-{number}",
    )


def _winners(found: list[Row]) -> list[dict[str, Any]]:
    """Return for each task the best row, and how to make one of its runs again."""
    best = winners(found)
    return [
        {
            "row": row,
            "spread": spread_of(row),
            "command": next((run["command"] for run in row.runs if run.get("command")), None),
        }
        for _, row in sorted(best.items())
    ]


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
