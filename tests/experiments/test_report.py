"""The report's page and pictures: whole in themselves, sorted by a click, honest about failures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from matplotlib.image import imread

from experiments import report
from experiments.reports import charts, sweep_data, table
from experiments.reports.page import page as make
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
        "command": f"run --seed {seed} <",
        "process": {"peak_memory_mib": 100.0 + seed},
    } | changes
    place = folder / f"{label}-{seed}"
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(result))
    rows = np.linspace(1, score, 4)
    history = {"value": rows, "inner_residual": rows / 10, "hyper": np.outer(rows, [1, 2])}
    history |= {"gradients": np.full(4, 3), "jvps": np.full(4, 2), "standard_error": rows / 100}
    results.write_history(place, history, ["penalty", "no <se>"])


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed in range(3):
        run(tmp_path, "a=0.1", seed, 0.5 + 0.1 * seed)
        run(tmp_path, "a=10", seed, 0.8 + 0.1 * seed)
    run(tmp_path, "a=<script>", 0, 0.9, status="failed", error="no <such> thing")
    return tmp_path


class Page(HTMLParser):
    """Tags with their attributes, and the cells of the table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and self.tags[-1][0] in ("td", "th"):
            self.rows[-1][-1] += data


def test_page_holds_table_and_pictures_and_needs_no_network(sweep: Path) -> None:
    assert report.main([str(sweep)]) == 0
    text = (sweep / "report.html").read_text()
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
    # Nothing is fetched: no address anywhere, and a policy that refuses one.
    assert not re.search(r"(https?:)?//[a-z]", text)
    assert not [tag for tag, attrs in page.tags if tag in ("iframe", "img") or "src" in attrs]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert "default-src 'none'" in text
    assert "no &lt;such&gt; thing" in text
    assert "<script>," not in text
    assert table.RULE.split(":")[0] in text
    assert table.RULE in (sweep / "report.md").read_text()
    assert "--seed 0 &lt;" in text  # the command of the best row
    found = table.rows(report.read(sweep))
    assert 'id="again"' not in text
    assert 'data-seconds="30.0" checked' in make("t", table.cells(found), found, 30.0)


def test_charts_hold_what_the_runs_recorded(sweep: Path) -> None:
    drawn = {chart["title"]: chart for chart in charts.charts(table.rows(report.read(sweep)))}
    assert [*drawn] == ["scores", "curves and evidence", "hyperparameters", "slice over a"]
    best = drawn["scores"]["series"][0]
    assert best["data"]["mse"] == pytest.approx([0.5, 0.6, 0.7])
    assert best["data"]["oracle calls"] == [13, 13, 13]
    assert best["data"]["MiB"] == [100, 101, 102]
    curves = drawn["curves and evidence"]
    assert curves["y"] == ["outer value", "its standard error", "inner residual"]
    first = curves["series"][0]
    assert first["data"]["oracle calls"] == [5, 10, 15, 20]
    # Runs of 2 + 1 seconds and 4 steps.
    assert first["data"]["seconds, in proportion to steps"] == [0.75, 1.5, 2.25, 3]
    ends = np.array([0.5, 0.6, 0.7])
    assert first["data"]["outer value"][-1] == pytest.approx(ends.mean())
    low, high = first["band"]["its standard error"]
    assert (low[-1], high[-1]) == pytest.approx((0.005, 0.007))
    paths = drawn["hyperparameters"]["series"]
    assert [(s["group"], s["name"]) for s in paths[:2]] == [
        ("a=0.1", "penalty"),
        ("a=0.1", "no <se>"),
    ]
    assert paths[1]["data"]["value"][-1] == pytest.approx(2 * ends.mean())
    (line,) = drawn["slice over a"]["series"]
    assert (line["data"]["a"], line["data"]["mse"]) == ([0.1, 10], pytest.approx([0.6, 0.9]))
    assert drawn["slice over a"]["log"] == ["a"]
    # Student's t with two degrees of freedom: 4.30265 standard errors.
    assert line["half"]["mse"][0] == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-5)


def test_pictures_are_files_and_show_something(sweep: Path) -> None:
    assert report.main([str(sweep)]) == 0
    pictures = sorted(path.name for path in sweep.glob("report-*.png"))
    kinds = ["a", "curves", "scores", "trajectories"]
    assert pictures == [f"report-t_b_-{kind}.png" for kind in kinds]
    for name in pictures:
        assert imread(sweep / name)[..., :3].std() > 0.02


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
    found = [row for row in table.rows(report.read(sweep)) if row.scores]
    (points,) = sweep_data.numeric(found).values()
    assert [(x, pytest.approx(y), rest) for x, y, _, rest in points] == [
        (0.1, 0.6, ""),
        (10.0, 0.9, ""),
    ]
