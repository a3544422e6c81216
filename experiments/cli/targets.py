"""What a configuration may call: the allow-list of `_target_`, and the settings of a target."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from experiments.common.errors import BadInputError, suggest

ALLOWED = ("bilevel.", "tasks.", "optax.", "flax.")


def refuse_foreign(node: Any, where: str) -> None:
    """Raise unless every `_target_` in `node` starts with an allowed prefix; imports nothing.

    Raises
    ------
    BadInputError : a target elsewhere, or one that is no name.
    """
    for path, settings in _targets(node, where):
        target = settings["_target_"]
        if not isinstance(target, str) or not target.startswith(ALLOWED):
            raise BadInputError(
                f"{path}._target_: {target!r} is not allowed. A target must start with one of "
                f"{', '.join(ALLOWED)}"
            )


def refuse_unknown(node: Any, where: str) -> None:
    """Raise unless every `_target_` in `node` exists and takes the settings beside it.

    Raises
    ------
    BadInputError : a target that cannot be imported, that an allowed package has only borrowed, or
        that has no such setting.
    """
    refuse_foreign(node, where)
    for path, settings in _targets(node, where):
        target = settings["_target_"]
        found = locate(target, f"{path}._target_")
        # `bilevel.tuning.tune.warnings` starts with `bilevel.` too, but is not bilevel's.
        if not callable(found) or not f"{found.__module__}.".startswith(ALLOWED):
            raise BadInputError(f"{path}._target_: {target} is no class or function of {ALLOWED}.")
        accepted = inspect.signature(found).parameters
        if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            continue
        for name in settings:
            if name not in accepted and not name.startswith("_"):
                raise BadInputError(
                    f"{path}.{name}: {target} has no such setting. {suggest(name, accepted)}"
                )


def _targets(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dictionary within that has a `_target_`, with its address."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield where, node
        for key, child in node.items():
            yield from _targets(child, f"{where}.{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{where}[{index}]")


def locate(target: str, where: str) -> Any:
    """What `target` names; attributes before modules, as Hydra does: `bilevel.transform` is both.

    Raises
    ------
    BadInputError : there is no such thing.
    """
    found: Any = None
    parts = target.split(".")
    for depth, name in enumerate(parts):
        try:
            found = getattr(found, name) if depth else importlib.import_module(name)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(parts[: depth + 1]))
            except ModuleNotFoundError as error:
                known = [known for known in dir(found) if not known.startswith("_")]
                raise BadInputError(
                    f"{where}: there is no {target}. {suggest(name, known)}"
                ) from error
    return found
