"""Formulas of the pages, as MathML: browsers draw it themselves, and no script is fetched."""

import html
import re

from latex2mathml import converter

FORMULA = re.compile(
    r'<(?:span|div) class="arithmatex">\s*\\(?P<open>[(\[])(?P<tex>.+?)\\[)\]]\s*</(?:span|div)>',
    re.DOTALL,
)


def draw(formula: re.Match[str]) -> str:
    """Return one formula, in its line or on a line of its own."""
    display = "block" if formula["open"] == "[" else "inline"
    return converter.convert(html.unescape(formula["tex"]), display=display)


def on_page_content(content: str, **_: object) -> str:
    """Return the HTML of a page with every formula drawn."""
    return FORMULA.sub(draw, content)
