"""Whose code a command runs: what it names itself, and what `trust=` names; never a leaf's.

A leaf, a `result.json` or a checkpoint may come from anywhere. So what decides over code, files and
processes is taken from the command line alone: all of `hydra`, `trust`, `resume`, and the folder of
compiled programs, whose content is run.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl

from experiments.cli.allowed import allowed
from experiments.cli.targets import PAGE, nodes, refuse_foreign
from experiments.common.errors import BadInputError

CUSTOM = "tasks.custom.custom"
NODES = ("task", "solver", "estimator", "outer")
_OURS_ALONE = ("hydra", "trust", "resume", "compile_cache")


def refuse_untrusted(settings: dict[str, Any], overrides: list[str]) -> None:
    """Raise unless all that the settings would run is trusted by the command line.

    Raises
    ------
    BadInputError : a target that is not allowed, a function that the command line does not name,
        `trust` that is no list of names.
    """
    trust, given = settings["trust"], {_name(override) for override in overrides}
    if not isinstance(trust, list) or not all(isinstance(name, str) and name for name in trust):
        raise BadInputError(f"trust: expected a list of modules and files, got {trust!r}")
    if trust and "trust" not in given:
        raise BadInputError(f"trust: only the command line says whom to trust ({PAGE}).")
    for node in NODES:
        refuse_foreign(settings[node], node, trust)
        for path, part in nodes(settings[node], node):
            if part.get("_target_") == CUSTOM and (
                path != "task" or {"_args_", "_partial_"} & {*part}
            ):
                raise BadInputError(f"{path}: {CUSTOM} is a task, and takes its settings by name.")
    task = settings["task"]
    if task.get("_target_") == CUSTOM and (function := task.get("function")) is not None:
        named_here = "task.function" in given and settings["resume"] is None
        _refuse_function(function, trust, named_here=named_here)


def _refuse_function(function: Any, trust: Collection[str], *, named_here: bool) -> None:
    """Raise unless it is a registered task, in a file that was typed, or of `trust`."""
    place, _, name = str(function).rpartition(":")
    if not place or f"{place}.{name}" in allowed() or place in trust:
        return  # without a place the task itself says what to write
    is_file = place.endswith(".py")
    if is_file and (named_here or _same_file(place, trust)):
        return
    raise BadInputError(
        f"task.function={function}: it would be run, and "
        + ("the command line does not name the file" if is_file else "nobody trusts the module")
        + f". If it is yours, add trust=[{place}] ({PAGE})."
    )


def _same_file(place: str, trust: Collection[str]) -> bool:
    return Path(place).resolve() in {Path(name).resolve() for name in trust if name[-3:] == ".py"}


def needed(facts: dict[str, Any]) -> list[str]:
    """Whom a command has to trust to go on with the run of these facts."""
    settings = facts.get("settings", {})
    function = settings.get("task", {}).get("function")
    place = str(function).rpartition(":")[0] if function else ""
    files = {place} if place.endswith(".py") else set()
    return sorted({*settings.get("trust", ()), *files})


@contextmanager
def leaves_guarded(own: Path) -> Iterator[None]:
    """While configurations are composed, refuse leaves from elsewhere than `own` that say too much.

    Hydra instantiates callbacks, launchers, sweepers and log handlers by name, before any function
    of ours is called; it has no setting against that. So each leaf is looked at when it is read.
    """
    whole = ConfigLoaderImpl._load_single_config

    def load(self: Any, default: Any, repo: Any) -> Any:
        found = whole(self, default, repo)
        if found.path.startswith("file:") and found.path != f"file://{own}":
            _refuse_leaf(default.config_path, found.config, found.defaults_list or ())
        return found

    ConfigLoaderImpl._load_single_config = load
    try:
        yield
    finally:
        ConfigLoaderImpl._load_single_config = whole


def _refuse_leaf(name: str, config: Any, chosen: Iterable[Any]) -> None:
    said = [key for key in _OURS_ALONE if key in config]
    others = [str(getattr(each, "group", None) or getattr(each, "path", "")) for each in chosen]
    said += [place for place in others if place.lstrip("/").startswith("hydra")]
    if said:
        raise BadInputError(
            f"{name}.yaml: a leaf may not set {said[0]}, the command line alone does: it decides "
            f"what is run and where it writes ({PAGE})."
        )


def _name(override: str) -> str:
    return override.split("=")[0].lstrip("+~")
