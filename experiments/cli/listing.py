"""`--list` and `--help`: what can be chosen, one line each, from the first sentence of its leaf."""

import re
import shutil
import textwrap
from pathlib import Path

from experiments.common.errors import BadInputError, suggest

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("task", "solver", "estimator", "outer", "experiment")
FLAG = "--list"
_FOLDER = ("--config-dir", "-cd")
_SENTENCE = re.compile(r"(.+?)(?:\.(?=\s+[A-Z])|\.?$)")  # "al. (2018)" is no end of one


def asked(arguments: list[str]) -> bool:
    """Whether the command line asks for the list and nothing else."""
    return any(argument.split("=")[0] == FLAG for argument in arguments)


def answer(arguments: list[str]) -> str:
    """All groups, or those that are named: `--list`, `--list solver`.

    Raises
    ------
    BadInputError : there is no such group.
    """
    folders = sources(arguments)
    given = [str(folder) for folder in folders]
    words = [a for a in arguments if not a.startswith("-") and a not in given]
    words += [a.partition("=")[2] for a in arguments if a.startswith(f"{FLAG}=")]
    names = [name for word in words for name in word.split(",")]
    for name in names:
        if name not in GROUPS:
            raise BadInputError(f"{FLAG} {name}: no such group. {suggest(name, GROUPS)}")
    return listing(folders, names or GROUPS)


def sources(arguments: list[str]) -> list[Path]:
    """The folders of leaves: ours, and the one that `--config-dir` names."""
    found = [CONF]
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, _, value = argument.partition("=")
        if name in _FOLDER:
            found.append(Path(value or following))
    return found


def listing(folders: list[Path], groups: tuple[str, ...] | list[str] = GROUPS) -> str:
    """`group=` and below it a name and a sentence per leaf; a later folder's leaf comes first."""
    width = min(shutil.get_terminal_size((110, 0)).columns, 120)
    lines = []
    for group in groups:
        leaves = {path.stem: path for folder in folders for path in folder.glob(f"{group}/*.yaml")}
        margin = max(map(len, leaves), default=0) + 4
        lines += ["", f"{group}="]
        for name in sorted(leaves):
            text = f"  {name:{margin - 2}}{sentence(leaves[name])}"
            lines += textwrap.wrap(text, width, subsequent_indent=" " * margin)
    return "\n".join(lines[1:])


def sentence(path: Path) -> str:
    """The first one of the comment that a leaf begins with; empty where it has none."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# ").rstrip())
    found = _SENTENCE.match(" ".join(words))
    return found[1] if found else ""
