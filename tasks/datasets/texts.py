"""Text that Python and scikit-learn bring along: sources to mix, noise among them, and a target."""

import ast
import string
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
import sklearn.datasets

ALPHABET = "\n " + string.ascii_lowercase + string.digits + string.punctuation
NOISE = ("shuffled", "uniform")
_MODULES = (
    *("argparse", "ast", "calendar", "configparser", "contextlib", "csv", "datetime", "difflib"),
    *("doctest", "enum", "fractions", "functools", "heapq", "inspect", "ipaddress", "mailbox"),
    *("optparse", "pdb", "pickle", "random", "shutil", "smtplib", "statistics", "string"),
    *("subprocess", "tarfile", "tempfile", "textwrap", "threading", "trace", "turtle", "typing"),
)


class Texts(NamedTuple):
    """Rows of character numbers ``[n, length]`` by source, of the ``target``, and whole lengths."""

    sources: dict[str, np.ndarray]
    target: np.ndarray
    characters: dict[str, int]


def read_texts(length: int, rows: int, seed: int) -> Texts:
    """Return up to ``rows`` rows of each source, drawn from all over it, and all of the target.

    Capitals count as small letters, what is not in ``ALPHABET`` as a question mark. ``shuffled``
    has the characters of the docstrings in random order, ``uniform`` any character as often as
    another; both are as long as the other sources are on average. The target is Python's help.
    """
    rng = np.random.RandomState(seed)
    docstrings, code = read_modules()
    descriptions = Path(sklearn.datasets.__file__).parent / "descr"
    made = {
        "docstrings": docstrings,
        "code": code,
        "descriptions": "\n".join(
            path.read_text(encoding="utf-8") for path in sorted(descriptions.glob("*.rst"))
        ),
        "names": "\n".join(unicodedata.name(chr(i), "") for i in range(0x20, 0x3000)),
    }
    numbers = {name: encode(text) for name, text in made.items()}
    size = int(np.mean([len(text) for text in numbers.values()]))
    numbers["shuffled"] = rng.choice(numbers["docstrings"], size)
    numbers["uniform"] = rng.randint(len(ALPHABET), size=size, dtype=np.int32)
    return Texts(
        {name: _cut(text, length, rng)[:rows] for name, text in numbers.items()},
        _cut(encode("\n".join(topics[name] for name in sorted(topics))), length, rng),
        {name: len(text) for name, text in numbers.items()},
    )


def encode(text: str) -> np.ndarray:
    """Return the number of each character in the alphabet."""
    table = np.full(128, ALPHABET.index("?"), np.int32)
    table[[ord(letter) for letter in ALPHABET]] = np.arange(len(ALPHABET))
    return table[np.frombuffer(text.lower().encode("ascii", "replace"), np.uint8)]


def read_modules() -> tuple[str, str]:
    """Return the docstrings of modules of the standard library, and their code without them."""
    docstrings, code = [], []
    for name in _MODULES:
        path = Path(sysconfig.get_path("stdlib")) / f"{name}.py"
        if not path.is_file():
            continue  # another version of Python
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings += _take_docstrings(tree)
        code.append(ast.unparse(tree))
    return "\n".join(docstrings), "\n".join(code)


def _take_docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings, and take them out of the tree."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (found := ast.get_docstring(node)) is not None:
            node.body = node.body[1:] or [ast.Pass()]
            yield found


def _cut(text: np.ndarray, length: int, rng: np.random.RandomState) -> np.ndarray:
    """Return the text as rows in random order; what does not fill the last one is left out."""
    rows = text[: len(text) // length * length].reshape(-1, length)
    return rows[rng.permutation(len(rows))]
