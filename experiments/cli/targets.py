"""What a configuration may call, the settings of a target, and the object that a node describes.

A node is never interpreted a second time: what stands in it after references are resolved is data,
whatever it looks like.
"""

import functools
import importlib
import inspect
from collections.abc import Collection, Iterator
from typing import Any

from experiments.cli.allowed import allowed
from experiments.common.errors import BadInputError, suggest

PAGE = "docs/trust.md"
_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_KEYS = frozenset({"_target_", "_partial_", "_args_"})


def refuse_foreign(node: Any, where: str, trust: Collection[str] = ()) -> None:
    """Raise unless every `_target_` in `node` is on the list, or of a module of `trust`.

    Imports nothing.

    Raises
    ------
    BadInputError : another target, one that is no name, or a key that no node has.
    """
    for path, settings in nodes(node, where):
        if "_target_" in settings:
            _refuse_target(settings["_target_"], path, trust)
        for key in settings:
            if key.startswith("_") and key.endswith("_") and key not in _KEYS:
                raise BadInputError(
                    f"{path}.{key}: there is no such key. A node has settings, and of "
                    f"{', '.join(sorted(_KEYS))} what it needs."
                )


def _refuse_target(target: Any, path: str, trust: Collection[str]) -> None:
    names = allowed()
    if isinstance(target, str) and (target in names or target.rpartition(".")[0] in trust):
        return
    if not isinstance(target, str):
        raise BadInputError(f"{path}._target_: {target!r} is not allowed: expected a name.")
    module, _, name = target.rpartition(".")
    beside = [known for known in names if known.rpartition(".")[0] == module]
    near = f"there is no {target}. {suggest(name, [n.rpartition('.')[2] for n in beside])} "
    raise BadInputError(
        f"{path}._target_: {target!r} is not allowed. {near if beside else ''}A configuration "
        "calls public classes of bilevel, registered tasks, transformations of optax and modules "
        f"of flax ({PAGE}). Code of your own: trust=[{module or 'your.module'}] on the command "
        "line."
    )


def refuse_unknown(node: Any, where: str, trust: Collection[str] = ()) -> None:
    """Raise unless every `_target_` in `node` exists and takes the settings beside it.

    Raises
    ------
    BadInputError : a target that is not allowed or cannot be imported, or has no such setting.
    """
    refuse_foreign(node, where, trust)
    for path, settings in nodes(node, where):
        if "_target_" not in settings:
            continue
        target = settings["_target_"]
        signature = inspect.signature(locate(target, f"{path}._target_"))
        accepted = signature.parameters
        if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            continue
        for name in settings:
            if name not in accepted and name not in _KEYS:
                raise BadInputError(
                    f"{path}.{name}: {target} has no such setting. {suggest(name, accepted)}"
                )
        for name, parameter in accepted.items():
            optional = parameter.default is not parameter.empty or parameter.kind in _OPTIONAL
            if not (
                optional or name in settings or "_args_" in settings or settings.get("_partial_")
            ):
                raise BadInputError(f"{path}.{name}: {target} needs it: {path}.{name}=VALUE")


def nodes(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dictionary within, with its address."""
    if isinstance(node, dict):
        yield where, {str(key): value for key, value in node.items()}
        for key, child in node.items():
            yield from nodes(child, f"{where}.{key}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from nodes(child, f"{where}[{index}]")


def locate(target: str, where: str) -> Any:
    """What `target` names; attributes before modules: `bilevel.transform` is both.

    Raises
    ------
    BadInputError : there is no such class or function.
    """
    found: Any = None
    parts = target.split(".")
    for depth, name in enumerate(parts):
        try:
            found = getattr(found, name) if depth else importlib.import_module(name)
        except (AttributeError, ModuleNotFoundError):
            try:
                found = importlib.import_module(".".join(parts[: depth + 1]))
            except ModuleNotFoundError as error:
                known = [known for known in dir(found) if not known.startswith("_")]
                raise BadInputError(
                    f"{where}: there is no {target}. {suggest(name, known)}"
                ) from error
    if not callable(found):
        raise BadInputError(f"{where}: {target} is no class or function.")
    return found


def instantiate(node: Any, where: str, trust: Collection[str] = ()) -> Any:
    """The object that the node `where` describes.

    Raises
    ------
    BadInputError : a target that is not allowed, does not exist, has no such setting, or lacks one.
    ValueError, TypeError, OSError : what the target itself raises.
    """
    refuse_unknown(node, where, trust)
    return _make(node, where)


def _make(node: Any, where: str) -> Any:
    if isinstance(node, list):
        return [_make(child, f"{where}[{i}]") for i, child in enumerate(node)]
    if not isinstance(node, dict):
        return node
    given = {str(name): _make(child, f"{where}.{name}") for name, child in node.items()}
    if "_target_" not in given:
        return given
    target, partial = given.pop("_target_"), given.pop("_partial_", False)
    arguments = given.pop("_args_", [])
    found = locate(target, where)
    if partial:
        # Of nothing it is the function itself: equal in every run, so JAX compiles once.
        return functools.partial(found, *arguments, **given) if arguments or given else found
    try:
        inspect.signature(found).bind(*arguments, **given)
    except TypeError as error:
        raise BadInputError(
            f"{where}: {target} cannot be made of these settings: {error}."
        ) from error
    try:
        return found(*arguments, **given)
    except (ValueError, TypeError, OSError):
        raise
    except Exception as error:
        raise BadInputError(f"{where}: {target}: {type(error).__name__}: {error}") from error
