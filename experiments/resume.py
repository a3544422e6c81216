"""Going on with a run: which settings hold, and whether there is anything left to do."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.hydra_compat import read_run
from experiments.words import BadInputError

# What may differ from the saved settings when a run goes on; the rest decides its numbers.
FREE = frozenset({"steps", "resume", "progress", "plot", "baselines", "compile_cache"})
RESULT = "result.json"


def saved_settings(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The settings of the run in the folder `resume`, with those of `overrides` that are free.

    Raises
    ------
    BadInputError : there is no run in the folder, or an override would change its numbers.
    """
    folder = Path(settings["resume"])
    composed, begun = folder / ".hydra" / "config.yaml", folder / RESULT
    if not composed.is_file():
        raise BadInputError(
            f"resume={folder}: no run was started in this folder, {composed} is missing."
        )
    # What another start in the same folder composed and was refused is in the first file only.
    saved = _read(begun).get("settings") or read_run(composed)
    for name in (override.split("=")[0].lstrip("+~") for override in overrides):
        if name not in FREE:
            raise BadInputError(
                f"{name}: a run goes on with its saved settings. Beside resume= only "
                f"{', '.join(sorted(FREE - {'resume'}))} may be given."
            )
        saved[name] = settings[name]
    return saved


def command(folder: Path) -> str:
    """What to type to go on with the run in `folder`."""
    simple = re.fullmatch(r"[\w./+-]+", str(folder))
    resume = f"resume={folder}" if simple else f"'resume=\"{folder}\"'"
    return f"python -m experiments.run {resume}"


def refuse_other(saved: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Raise unless the run in `folder` was made with these settings.

    Raises
    ------
    BadInputError : a setting that decides the numbers differs.
    """
    before, now = flat(saved), flat(settings)
    for name in sorted(before.keys() | now.keys()):
        if name not in FREE and before.get(name) != now.get(name):
            raise BadInputError(
                f"{folder} holds a run with {name}={before.get(name)}, not {now.get(name)}. "
                "Start this one in another folder, or remove that one."
            )


def finished(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result in `folder` if it is of this run and has all its steps; reads no checkpoint."""
    result = _read(folder / RESULT)
    if result.get("status") != "completed" or result["steps"] < settings["steps"]:
        return None
    refuse_other(result["settings"], settings, folder)
    return result


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def flat(tree: Any, where: str = "") -> dict[str, Any]:
    """Nested settings by their full names, as on the command line."""
    if not isinstance(tree, dict):
        return {where: tree}
    found: dict[str, Any] = {}
    for name, child in tree.items():
        found |= flat(child, f"{where}.{name}" if where else str(name))
    return found
