"""The report's page in a real browser: charts are drawn, a press on a heading sorts."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from experiments import report
from tests.experiments.test_report import Page, run

# Presses the heading of the mean twice, filters, and chooses another column of the second chart.
PRESS = """<script>addEventListener("load", () => {
  const heading = document.querySelectorAll("th button")[5];
  heading.click(); heading.click();
  const field = document.querySelector("#filter"); field.value = "a=1";
  field.dispatchEvent(new Event("input"));
  const rows = [...document.querySelectorAll("tbody tr[hidden]")];
  const hidden = rows.map(row => row.cells[1].textContent);
  const chart = document.querySelector("#chart-1");
  const [changes, layout] = chart.layout.updatemenus[1].buttons[2].args;
  Plotly.update(chart, changes, layout).then(() =>
    document.title = JSON.stringify([chart._fullLayout.yaxis.type, ...hidden]));
});</script>"""


@pytest.mark.slow
def test_page_in_a_browser(tmp_path: Path) -> None:
    """What the browser makes of it: every chart has its marks, the table its new order."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no browser: install Debian's package chromium")
    folder = tmp_path / "sweep"
    for seed in range(3):
        run(folder, "a=0.1", seed, 0.5 + 0.1 * seed)
        run(folder, "a=10", seed, 0.8 + 0.1 * seed)
        run(folder, "a=2", seed, 0.65 + 0.1 * seed)
    run(folder, "a=<script>", 0, 0.9, status="failed", error="no <such> thing")
    assert report.main([str(folder)]) == 0
    path = folder / "pressed.html"
    path.write_text((folder / "report.html").read_text().replace("</body>", f"{PRESS}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--disable-dev-shm-usage", "--virtual-time-budget=5000", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run([chromium, *flags], capture_output=True, text=True, timeout=120)
    assert not re.findall("CONSOLE.*", done.stderr)
    body = done.stdout[done.stdout.rindex("</style></head>") :]
    rows = Page(body).rows[1:]
    assert [row[1] for row in rows] == ["a=10", "a=2", "a=0.1", "a=<script>"]  # no number: last
    title = re.search("<title>(.*)</title>", done.stdout)
    assert title is not None
    assert unescape(title[1]) == '["log","a=2","a=0.1","a=<script>"]'
    drawn = [len(re.findall('class="trace scatter', part)) for part in body.split("<figcaption>")]
    assert drawn == [0, 3, 9, 6, 1]
