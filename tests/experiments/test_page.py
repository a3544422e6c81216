"""The report's page in a real browser: charts are drawn, a press on a heading sorts."""

import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import unescape
from pathlib import Path

import pytest

from experiments import report
from tests.experiments.test_report import Page, run

# Presses the heading of the mean twice, filters, and chooses another column of the second chart.
PRESS = """addEventListener("load", () => {
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
});"""


def look_at(path: Path, profile: Path) -> tuple[str, list[str]]:
    """What a browser makes of a page: its document in the end, and what it complained about."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no browser: install Debian's package chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    flags += ["--disable-dev-shm-usage", "--virtual-time-budget=5000", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    done = subprocess.run([chromium, *flags], capture_output=True, text=True, timeout=120)
    said = re.findall("CONSOLE.*", done.stderr)
    return done.stdout, [line for line in said if "MathJax" not in line]  # a dollar sign


def title_of(document: str) -> str:
    found = re.search("<title>(.*)</title>", document)
    assert found is not None
    return unescape(found[1])


@pytest.mark.slow
def test_page_in_a_browser(tmp_path: Path) -> None:
    """What the browser makes of it: every chart has its marks, the table its new order."""
    folder = tmp_path / "sweep"
    for seed in range(3):
        run(folder, "a=0.1", seed, 0.5 + 0.1 * seed)
        run(folder, "a=10", seed, 0.8 + 0.1 * seed)
        run(folder, "a=2", seed, 0.65 + 0.1 * seed)
    run(folder, "a=<script>", 0, 0.9, status="failed", error="no <such> thing")
    assert report.main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    path = folder / "pressed.html"
    path.write_text(text.replace("</body>", f"<script>{PRESS}</script></body>"))
    document, complaints = look_at(path, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in complaints)  # it runs no other script
    assert title_of(document) == "sweep"
    allowed = f"script-src 'sha256-{b64encode(sha256(PRESS.encode()).digest()).decode()}'"
    path.write_text(path.read_text().replace("script-src", allowed, 1))
    document, complaints = look_at(path, tmp_path / "profile")
    assert not complaints
    body = document[document.rindex("</style></head>") :]
    rows = Page(body).rows[1:]
    assert [row[1] for row in rows] == ["a=10", "a=2", "a=0.1", "a=<script>"]  # no number: last
    assert title_of(document) == '["log","a=2","a=0.1","a=<script>"]'
    drawn = [len(re.findall('class="trace scatter', part)) for part in body.split("<figcaption>")]
    assert drawn == [0, 3, 9, 6, 1]


ATTACK = "document.title='owned'"
ATTACKS = (
    f"<script>{ATTACK}</script>",
    f'"><img src=x onerror="{ATTACK}">',
    f"</script><script>{ATTACK}</script>",
    f"</title></style><svg onload={ATTACK}>",
    f'<a href="javascript:{ATTACK}">x</a><iframe srcdoc="<script>parent.{ATTACK}</script>">',
    "{{ 7 * 7 }} {% for x in y %} ${oc.env:HOME} \\u003cscript>",
)


@pytest.mark.slow
@pytest.mark.parametrize("with_policy", [True, False])
def test_no_text_of_a_result_is_run_with_or_without_the_policy(
    tmp_path: Path, with_policy: bool
) -> None:
    """Every text of a result hostile, in a real browser: escaping holds alone."""
    folder = tmp_path / "sweep"
    for place, attack in enumerate(ATTACKS):
        for status in ("completed", "unreliable", "failed", attack):
            texts = dict.fromkeys(("task", "message", "error", "traceback", "command"), attack)
            named = {"test_metrics": {attack: 1.0}, "baselines": {attack: {attack: 2.0}}}
            named |= {"hyper_summary": {attack: 1.0}, "choices": {"task": attack, attack: attack}}
            named |= {"unknown": [attack], "versions": {attack: attack}, "notes": {attack: attack}}
            asked = [f"a={len(status)}", f"{attack}={attack}"]
            label = f"{place}-{len(status)}"
            run(folder, label, place, 1.0, status=status, overrides=asked, **texts, **named)
    assert report.main([str(folder)]) == 0
    path = folder / "report.html"
    if not with_policy:
        path.write_text(path.read_text().replace("Content-Security-Policy", "x-none", 1))
    document, complaints = look_at(path, tmp_path / "profile")
    assert not complaints
    assert title_of(document) == "sweep"
    assert "owned" in document  # as text
