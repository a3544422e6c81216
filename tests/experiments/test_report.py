"""The report's page and pictures: whole in themselves, sorted by a click, honest about failures."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from matplotlib.image import imread
from plotly.offline import get_plotlyjs

from experiments import report
from experiments.reports import charts, sweep_data, table
from experiments.reports import page as page_module
from experiments.reports.page import make_page
from experiments.runs import results


def run(folder: Path, label: str, seed: int, score: float, **changes: Any) -> None:
    """A folder as a run leaves it."""
    result = {
        "task": "t <b>",
        "status": "completed",
        "seed": seed,
        "test_metrics": {"mse": score},
        "value": score,
        "counts": {"gradients": 10, "jvps": 3},
        "seconds": 2.0,
        "steps": 4,
        "compile_seconds": 1.0,
        "overrides": [label, f"seed={seed}"],
        "choices": {"task": "t"},
        "settings": {},
        "command": f"python -m experiments.run seed={seed} 'a=<'",
        "process": {"peak_memory_mib": 100.0 + seed},
    } | changes
    place = folder / f"{label}-{seed}"
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(result))
    rows = np.linspace(1, score, 4)
    history = {"value": rows, "inner_residual": rows / 10, "hyper": np.outer(rows, [1, 2])}
    history |= {"gradients": np.full(4, 3), "jvps": np.full(4, 2), "standard_error": rows / 100}
    results.write_history(place, history, ["penalty", "no <se>"])


def make_sweep(folder: Path) -> Path:
    for seed in range(3):
        run(folder, "a=0.1", seed, 0.5 + 0.1 * seed)
        run(folder, "a=10", seed, 0.8 + 0.1 * seed)
    run(folder, "a=<script>", 0, 0.9, status="failed", error="no <such> thing")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with its report, not to be changed."""
    folder = make_sweep(tmp_path_factory.mktemp("reported"))
    assert report.main([str(folder)]) == 0
    return folder


class Page(HTMLParser):
    """Tags with their attributes, texts outside scripts, and the cells of the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data
        if self.rows and self.rows[-1] and self.tags[-1][0] in ("td", "button"):
            self.rows[-1][-1] += data.strip("\n")


def test_page_holds_table_and_pictures_and_needs_no_network(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    page = Page(text)
    header, first, second, third = page.rows
    assert header == [*table.COLUMNS, "verdict"]
    place = {name: i for i, name in enumerate(header)}
    assert [row[place["run"]] for row in (first, second, third)] == ["a=0.1", "a=10", "a=<script>"]
    assert first[place["verdict"]] == "best"
    assert float(first[place["MiB"]]) == 102
    # The same noise in all seeds: the paired difference is exact.
    assert float(second[place["difference"]]) == pytest.approx(0.3)
    assert float(second[place["d 95 %"]]) == pytest.approx(0, abs=1e-9)
    # Nothing is fetched: no address anywhere but in plotly's comments, and a policy that refuses.
    assert text.count(get_plotlyjs()) == 1
    assert not re.search(r"(https?:)?//[a-z]", text.replace(get_plotlyjs(), ""))
    assert not [tag for tag, attrs in page.tags if tag in ("iframe", "img") or "src" in attrs]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    (policy,) = [attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs]
    assert "default-src 'none'" in (policy or "")
    assert table.RULE in page.text
    assert table.RULE in (reported / "report.md").read_text()
    assert "experiments.run seed=0 'a=<'" in page.text  # the command of the best row
    assert 'id="again"' not in text


def test_headings_are_reached_by_the_keyboard(reported: Path) -> None:
    page = Page((reported / "report.html").read_text())
    tags = [(tag, attrs) for tag, attrs in page.tags if tag in ("th", "button")]
    heading = [("th", {"scope": "col"}), ("button", {"type": "button"})]
    assert tags == heading * len(page.rows[0])


def test_page_reads_itself_again_while_it_is_watched(sweep: Path) -> None:
    found = table.rows(report.read(sweep))
    page = Page(make_page("t", table.make_table(found), found, 30.0))
    (field,) = [attrs for _, attrs in page.tags if attrs.get("id") == "again"]
    assert field["data-seconds"] == "30.0"
    assert "checked" in field


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_text_of_runs_makes_no_markup(tmp_path: Path) -> None:
    """Whatever a result says is shown as it is: label, status, message, metric, name, command."""
    for seed in range(2):
        told = {"test_metrics": {HOSTILE: 1.0 + seed}, "task": HOSTILE, "command": HOSTILE}
        for value in (1, 2):
            changes = [f"a={value}", HOSTILE if value == 1 else "b"]
            run(tmp_path, f"r{value}", seed, 1.0, overrides=changes, **told)
    run(tmp_path, "f", 0, 1.0, status=HOSTILE, error=HOSTILE, task=HOSTILE)
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.text.count(HOSTILE) > 6
    assert "<img" not in text.replace(get_plotlyjs(), "")
    # plotly reads tags in names and titles, from its JSON: there they are entities.
    assert r"\u003cimg" not in text.replace(get_plotlyjs(), "")
    assert "&lt;img" in text.replace(get_plotlyjs(), "")
    # A command that somebody may paste is ours, or is not shown.
    assert f"<pre>{escape(HOSTILE)}" not in text.partition("Not completed")[0]
    # The policy names the two scripts by their digests, and they are the same in every page.
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    assert not any("alert" in script for script in scripts[1:])
    digests = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    policy = next(str(attrs["content"]) for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy.endswith("script-src " + " ".join(f"'sha256-{digest}'" for digest in digests))
    assert scripts[1] == (Path(page_module.__file__).parent / "page.js").read_text()


def menus(chart: charts.Chart) -> dict[str, tuple[Any, ...]]:
    """What each menu of a chart sets, by the label of the choice."""
    layout = chart.figure.layout
    return {button.label: button.args for menu in layout.updatemenus for button in menu.buttons}


def test_charts_hold_what_the_runs_recorded(sweep: Path) -> None:
    drawn = {chart.title: chart for chart in charts.make_charts(table.rows(report.read(sweep)))}
    assert [*drawn] == ["scores", "curves and evidence", "hyperparameters", "slice over a"]
    scores = drawn["scores"]
    best = scores.figure.data[0]
    assert best.y == pytest.approx([0.5, 0.6, 0.7])
    assert best.text == ("seed 0", "seed 1", "seed 2")
    assert menus(scores)["oracle calls"][0]["x"] == [[13, 13, 13]] * 2
    assert menus(scores)["MiB"][0]["x"][0] == [100, 101, 102]
    curves = drawn["curves and evidence"]
    assert [b.label for b in curves.figure.layout.updatemenus[1].buttons] == [
        "outer value",
        "its standard error",
        "inner residual",
    ]
    chosen = menus(curves)
    assert chosen["oracle calls"][0]["x"][:3] == [[5, 10, 15, 20]] * 3
    # Runs of 2 + 1 seconds and 4 steps.
    assert chosen["seconds, in proportion to steps"][0]["x"][0] == [0.75, 1.5, 2.25, 3]
    ends = np.array([0.5, 0.6, 0.7])
    assert curves.figure.data[0].y[-1] == pytest.approx(ends.mean())
    assert curves.figure.data[2].fill == "tonexty"
    errors, layout = chosen["its standard error"]
    assert [column[-1] for column in errors["y"][:3]] == pytest.approx([0.006, 0.005, 0.007])
    assert layout == {"yaxis.title.text": "its standard error", "yaxis.type": "log"}
    paths = drawn["hyperparameters"]
    named = [trace for trace in paths.figure.data if trace.name]
    assert [(trace.name, trace.visible) for trace in named] == [
        ("penalty", True),
        ("no <se>", True),
        ("penalty", False),
        ("no <se>", False),
    ]
    assert menus(paths)["a=10"][0]["visible"] == [False] * 6 + [True] * 6
    assert named[1].y[-1] == pytest.approx(2 * ends.mean())
    (line,) = drawn["slice over a"].figure.data
    assert (line.x, line.y) == ((0.1, 10), pytest.approx([0.6, 0.9]))
    assert drawn["slice over a"].figure.layout.xaxis.type == "log"
    # Student's t with two degrees of freedom: 4.30265 standard errors.
    assert line.error_y.array[0] == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-5)


def test_pictures_are_files_and_show_something(reported: Path) -> None:
    pictures = sorted(path.name for path in reported.glob("report-*.png"))
    kinds = ["a", "curves", "scores", "trajectories"]
    assert pictures == [f"report-t_b_-{kind}.png" for kind in kinds]
    for name in pictures:
        assert imread(reported / name)[..., :3].std() > 0.02


def test_parquet_keeps_numbers(sweep: Path) -> None:
    assert report.main([str(sweep), "--no-page"]) == 0
    assert not (sweep / "report.html").exists()
    content = pyarrow.parquet.read_table(sweep / "report.parquet").to_pydict()
    assert content["run"] == ["a=0.1", "a=10", "a=<script>"]
    assert content["mean"][:2] == pytest.approx([0.6, 0.9])
    assert content["completed"] == [3, 3, 0]


def test_watch_stops_at_a_keystroke(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert report.main([str(sweep), "--no-page", "--watch", "0.5"]) == 0
    assert naps == [0.5, 0.5]


def test_labels_of_one_swept_number_become_a_slice(sweep: Path) -> None:
    found = [row for row in table.rows(report.read(sweep)) if not row.scores.empty]
    (points,) = sweep_data.numeric(found).values()
    assert [(x, pytest.approx(y), rest) for x, y, _, rest in points] == [
        (0.1, 0.6, ""),
        (10.0, 0.9, ""),
    ]
