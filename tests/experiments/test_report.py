"""The report's page and pictures: whole in themselves, sorted by a click, honest about failures."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from matplotlib.image import imread

from experiments import report, results, table


def run(folder: Path, label: str, seed: int, score: float, **changes: Any) -> None:
    """A folder as a run leaves it."""
    result = {
        "task": "t <b>", "status": "completed", "seed": seed, "test_metrics": {"mse": score},
        "value": score, "counts": {"gradients": 10, "jvps": 3}, "seconds": 2.0, "steps": 4,
        "compile_seconds": 1.0, "overrides": [label, f"seed={seed}"], "choices": {"task": "t"},
        "settings": {}, "process": {"peak_memory_mib": 100.0 + seed},
    } | changes  # fmt: skip
    place = folder / f"{label}-{seed}"
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(result))
    rows = np.linspace(1, score, 4)
    history = {"value": rows, "inner_residual": rows / 10, "hyper": rows[:, None]}
    history |= {"gradients": np.full(4, 3), "jvps": np.full(4, 2)}
    results.write_history(place, history, ["penalty"])


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
    pictures = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 3  # scores, curves, and a slice over `a`
    for source in pictures:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        assert imread(io.BytesIO(base64.b64decode(content)))[..., :3].std() > 0.02
    # Nothing is fetched: no address anywhere, and a policy that refuses one.
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert not [
        a for tag, a in page.tags if tag in ("link", "iframe") or ("src" in a and tag != "img")
    ]
    assert "default-src 'none'" in text
    assert "no &lt;such&gt; thing" in text
    assert "<script>," not in text


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
    from experiments import sweep_plots

    found = [row for row in table.rows(report.read(sweep)) if row.scores]
    (points,) = sweep_plots.numeric(found).values()
    assert [(x, pytest.approx(y), rest) for x, y, _, rest in points] == [
        (0.1, 0.6, ""), (10.0, 0.9, "")
    ]  # fmt: skip
