"""Going on with a run: which settings hold, and whether there is anything left to do."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.cli.hydra_compat import CONF, read_run
from experiments.common.errors import BadInputError, DamagedError
from experiments.common.files import set_aside
from experiments.storage.result_file import ENDED_AS, RESULT, read_result

# What may differ from the saved settings when a run goes on; the rest decides its numbers.
FREE = frozenset({"steps", "resume", "progress", "plot", "baselines", "compile_cache", "max_error"})
FREE |= {"trust", "keep_going"}
# The command line's alone: they decide over code.
NEVER_SAVED = ("resume", "trust", "compile_cache")


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
    saved = _read(begun).get("settings") or _composed(composed, settings)
    saved = settings | saved  # what an older version did not know has its default
    saved |= {name: settings[name] for name in NEVER_SAVED}
    if not isinstance(saved["vmap"], dict) or any(
        value is not None for value in saved["vmap"].values()
    ):
        raise BadInputError(
            f"resume={folder}: this folder holds many runs. Give the command that began them "
            f"again, with hydra.run.dir={folder}: it does only what is missing."
        )
    for name in map(_name, overrides):
        if name not in FREE:
            raise BadInputError(
                f"{name}: a run goes on with its saved settings. Beside resume= only "
                f"{', '.join(sorted(FREE - {'resume'}))} may be given."
            )
        saved[name] = settings[name]
    return saved


def _composed(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        saved = read_run(path)
    except Exception as error:  # half of a YAML file may be anything
        raise BadInputError(f"{path}: half written or of another version: {error}") from error
    if missing := settings.keys() - saved.keys():
        raise BadInputError(f"{path}: half written or of another version: no {min(missing)}.")
    return saved


def command(folder: Path, trust: Sequence[str] = ()) -> str:
    """What to type to go on with the run in `folder`, whose code needs the trust of the command."""
    simple = re.fullmatch(r"[\w./+-]+", str(folder))
    resume = f"resume={folder}" if simple else f"'resume=\"{folder}\"'"
    again = [shlex.quote(f"trust=[{','.join(trust)}]")] if trust else []
    return " ".join(["python -m experiments.run", resume, *again])


def repeat(overrides: list[str], sources: list[Path], *, sweep: bool) -> str:
    """What to type to make the same run anew, in a folder of its own.

    `sources` are the folders of leaves; a configuration that sweeps by itself makes one run of it
    with `hydra.mode=RUN`.
    """
    own = [part for folder in sources if folder != CONF for part in ("--config-dir", str(folder))]
    mode = ["hydra.mode=RUN"] if sweep else []
    return shlex.join(["python", "-m", "experiments.run", *own, *overrides, *mode])


def origin(folder: Path, further: list[str]) -> dict[str, Any]:
    """`choices` and `overrides` of the run in `folder`, with `further` overrides when it goes on.

    Nothing where the result is lost.
    """
    if not (begun := _read(folder / RESULT)):
        return {}
    further = [override for override in further if _name(override) != "resume"]
    again = {_name(override) for override in further}
    kept = [override for override in begun["overrides"] if _name(override) not in again]
    return {"choices": begun["choices"], "overrides": kept + further}


def _name(override: str) -> str:
    return override.split("=")[0].lstrip("+~")


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
                f"{folder} holds a run with {name}={_at(saved, name)}, not {_at(settings, name)}. "
                "Start this one in another folder, or remove that one."
            )


def _at(settings: Any, name: str) -> Any:
    """What a full name stands for: a value, a node where the other run has a value, or nothing."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def finished(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result in `folder` if it is of this run and has all its steps; reads no checkpoint.

    A run that diverged or stopped early has no further steps. With another `max_error` it is judged
    again.
    """
    result = _read(folder / RESULT)
    saved, status = result.get("settings", {}), result.get("status")
    most = settings["max_error"]
    if status not in ENDED_AS or saved.get("max_error", most) != most:
        return None
    asked = status == "diverged" or result.get("stopped")
    if (saved.get("steps", 0) if asked else result["steps"]) < settings["steps"]:
        return None
    refuse_other(result["settings"], settings, folder)
    return result


def _read(path: Path) -> dict[str, Any]:
    """A result, or nothing where there is none; a damaged one is set aside."""
    try:
        return read_result(path) if path.is_file() else {}
    except DamagedError as error:
        set_aside(path, str(error))
        return {}


def flat(tree: Any, where: str = "") -> dict[str, Any]:
    """Nested settings by their full names, as on the command line."""
    if not isinstance(tree, dict):
        return {where: tree}
    found: dict[str, Any] = {}
    for name, child in tree.items():
        found |= flat(child, f"{where}.{name}" if where else str(name))
    return found
