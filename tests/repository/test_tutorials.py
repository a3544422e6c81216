"""The tutorials: each runs as a program, and is a lesson with a title, a picture and an end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.test_docs import PRIVATE
from tests.repository.test_site import ROOT, load_settings, module_of_docs, nav_pages

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
MARKDOWN = re.compile(r"^# %% \[markdown\]\n((?:#.*\n)+)", re.MULTILINE)
each = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)


def lessons(tutorial: Path) -> list[str]:
    """Return the cells of text of a tutorial, in their order."""
    cells = MARKDOWN.findall(tutorial.read_text(encoding="utf-8"))
    return [re.sub(r"^# ?", "", cell, flags=re.MULTILINE) for cell in cells]


def test_there_are_eight_tutorials_and_all_are_in_the_navigation() -> None:
    (learn,) = (group["Learn"] for group in load_settings()["nav"] if "Learn" in group)
    listed = [page for page in nav_pages(learn) if page.startswith("tutorials/")]
    assert sorted(listed) == [f"tutorials/{path.name}" for path in TUTORIALS]
    assert len(listed) >= 8


@each
def test_a_tutorial_is_a_lesson(tutorial: Path) -> None:
    """A title, formulas, a picture with its axes and what it shows, and an end that leads on."""
    cells, text = lessons(tutorial), tutorial.read_text(encoding="utf-8")
    assert cells[0].startswith("# ")
    assert "$" in "".join(cells)
    assert all(name in text for name in ("xlabel=", "ylabel", "plt.show()"))
    # The sentence that says what to conclude from the picture follows it, and stands in its place.
    after = text.rpartition("plt.show()")[2]
    assert re.match(r"\n\n# %% \[markdown\]\n# \*[A-Z][^*]{60,}\.\*\n", after)
    assert cells[-1].startswith("## What to do next\n")
    assert text.endswith(after)
    assert PRIVATE.findall(text) == []


@each
def test_links_of_a_tutorial_resolve(tutorial: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", "\n".join(lessons(tutorial))):
        assert (tutorial.parent / target).exists(), target


@pytest.mark.extended
@each
def test_a_tutorial_runs(tutorial: Path, tmp_path: Path) -> None:
    """A fresh interpreter runs it, and what it asserts of its own numbers is true."""
    env = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-W", "error::RuntimeWarning", str(tutorial)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_formulas_of_a_tutorial_are_marked_and_code_is_left_alone() -> None:
    notebooks = module_of_docs("notebooks", "mkdocs_jupyter")
    marked = notebooks.draw_formulas("<p>from $a_1$ to $b$, $$c$$</p>")
    assert marked.count('<span class="arithmatex">') == 2
    assert r'<div class="arithmatex">\[c\]</div>' in marked
    page = f"<script></script>{notebooks.START}<pre>$a$ and $b$</pre></div>"
    shown = notebooks.on_page_content(page, page=None, files=None)
    assert shown == f"{notebooks.START}<pre>$a$ and $b$</pre></div>"


def test_a_picture_has_its_caption_in_its_place() -> None:
    notebooks = module_of_docs("notebooks", "mkdocs_jupyter")
    page = (
        f'{notebooks.START}<img alt="No description" src="data:image/png;base64,AA"/>'
        "<p><em>The <code>error</code> falls.</em></p></div>"
    )
    assert 'alt="The error falls."' in notebooks.on_page_content(page, page=None, files=None)
