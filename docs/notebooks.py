"""Tutorials as pages of the site: their links, formulas and pictures in the dress of the others.

mkdocs-jupyter brings style sheets, and scripts from another host, before the notebook. Both go:
the theme's own style is that of the code, and :mod:`formulas` draws the formulas.
"""

import posixpath
import re

START = '<div class="jupyter-wrapper">'
LINK = re.compile(r'(?<=href=")([\w./-]+\.(?:md|py))((?:#[\w.-]+)?)(?=")')
BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$\n]+?(?:\n[^$\n]+?)?)(?<!\s)\$(?![\w$])")
CODE = re.compile(r"(<pre.*?</pre>|<code.*?</code>)", re.DOTALL)
PICTURE = re.compile(
    r'(<img alt=")[^"]*("[^>]*src="data:image/png.*?<p><em>(?P<caption>.*?)</em></p>)', re.DOTALL
)
TAG = re.compile(r"<[^>]+>")


def draw_formulas(text: str) -> str:
    """Mark formulas as those of the other pages are marked."""
    text = BLOCK.sub(r'<div class="arithmatex">\\[\1\\]</div>', text)
    return INLINE.sub(r'<span class="arithmatex">\\(\1\\)</span>', text)


def describe_picture(picture: re.Match[str]) -> str:
    """Return a picture with its caption as the text in its place."""
    caption = TAG.sub("", picture["caption"]).replace('"', "&quot;").replace("$", "")
    return f"{picture[1]}{' '.join(caption.split())}{picture[2]}"


def on_page_content(content: str, page, files, **_: object) -> str:
    """Return the HTML of a tutorial without what other hosts would have to send."""
    if START not in content:
        return content

    def resolve(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[1]))
        target = files.get_file_from_path(path)
        if target is None:
            raise ValueError(f"{page.file.src_uri} links to {link[1]}, which is no page.")
        return target.url_relative_to(page.file) + link[2]

    content = START + content.partition(START)[2]
    content = content.replace("highlight-ipynb", "highlight")
    content = PICTURE.sub(describe_picture, LINK.sub(resolve, content))
    parts = CODE.split(content)
    return "".join(p if CODE.match(p) else draw_formulas(p) for p in parts)
