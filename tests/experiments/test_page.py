"""The report's page in a real browser: charts are drawn, a click sorts, nothing complains."""

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from experiments import report
from tests.experiments.browser import Browser, browser
from tests.experiments.test_report import run


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The page of a sweep: means 0.6, 0.9 and 0.75; one failed run."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in range(3):
        run(folder, "a=0.1", seed, 0.5 + 0.1 * seed)
        run(folder, "a=10", seed, 0.8 + 0.1 * seed)
        run(folder, "a=2", seed, 0.65 + 0.1 * seed)
    run(folder, "a=<script>", 0, 0.9, status="failed", error="no <such> thing")
    with browser() as found:
        assert report.main([str(folder)]) == 0
        found.open(folder / "report.html")
        yield found, folder


LABELS = (
    "return [...document.querySelectorAll('tbody tr:not([hidden])')].map(r => r.cells[1].innerText)"
)
DRAWN = "return document.querySelectorAll(`${arguments[0]} :is(path.line, circle[fill])`).length"


def test_charts_are_drawn_and_the_console_is_silent(window: tuple[Browser, Path]) -> None:
    page, folder = window
    assert page.console() == []
    titles = page.script(
        "return [...document.querySelectorAll('figcaption')].map(f => f.textContent)"
    )
    assert titles == ["scores", "curves and evidence", "hyperparameters", "slice over a"]
    counts = [page.script(DRAWN, f"#chart-{i}") for i in range(4)]
    assert counts == [9, 3, 2, 1 + 3]
    wide = page.script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert wide
    png = page.screenshot()
    (folder / "screenshot.png").write_bytes(png)
    picture = imread(io.BytesIO(png))
    assert picture.shape[1] >= 1200
    assert picture[..., :3].std() > 0.05


def test_click_on_a_heading_sorts(window: tuple[Browser, Path]) -> None:
    page, _ = window
    labels = ["a=0.1", "a=2", "a=10", "a=<script>"]
    assert page.script(LABELS) == labels
    page.click("th:nth-child(6)")  # the mean
    assert page.script(LABELS) == labels
    page.click("th:nth-child(6)")
    assert page.script(LABELS) == ["a=10", "a=2", "a=0.1", "a=<script>"]  # no number: last
    assert page.script("return document.querySelector('[aria-sort]').textContent") == "mean"
    page.script(
        "const field = document.querySelector('#filter'); field.value = 'a=1';"
        "field.dispatchEvent(new Event('input'))"
    )
    assert page.script(LABELS) == ["a=10"]
    assert page.console() == []


def choose(page: Browser, chart: str, axis: str, name: str) -> None:
    page.script(
        "const s = document.querySelector(`${arguments[0]} [data-axis=${arguments[1]}]`);"
        "s.value = arguments[2]; s.dispatchEvent(new Event('change'))",
        chart,
        axis,
        name,
    )


def test_charts_answer_the_pointer(window: tuple[Browser, Path]) -> None:
    """Choose what is drawn, read a number off, draw a frame, hide a line."""
    page, _ = window
    marks = "return [...document.querySelectorAll('#chart-1 svg text')].map(t => t.textContent)"
    choose(page, "#chart-1", "y", "inner residual")
    choose(page, "#chart-1", "x", "oracle calls")
    assert page.script("return document.querySelector('#chart-1 [data-log=y]').checked")
    assert {"oracle calls", "inner residual"} <= set(page.script(marks))
    page.script("document.querySelector('#chart-1').scrollIntoView({block: 'center'})")
    box = page.script(
        "const p = document.querySelector('#chart-1 .line'), r = p.getBoundingClientRect();"
        "return [r.left, r.top, r.right, r.bottom].map(Math.round)"
    )
    left, top, right, bottom = box
    page.pointer(("move", left + 1, top + 1))
    said = page.script("return document.querySelector('#chart-1 output').textContent")
    assert said == "a=0.1: inner residual 0.1 (from 0.1 to 0.1) at oracle calls 5"
    whole = page.script(marks)
    page.pointer(
        ("move", left, top), ("down", 0, 0), ("move", (left + right) // 2, bottom), ("up", 0, 0)
    )
    assert page.script(marks) != whole
    page.click("#chart-1 [data-reset]")
    assert page.script(marks) == whole
    page.click("#chart-1 .legend button")
    assert page.script(DRAWN, "#chart-1") == 2
    choose(page, "#chart-2", "group", "a=10")
    page.script("document.querySelector('#chart-2').scrollIntoView()")
    legend = "return document.querySelector('#chart-2 .legend').textContent"
    assert page.script(legend) == "penaltyno <se>"
    assert page.console() == []
