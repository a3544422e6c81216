"""Checks of a composed configuration before JAX is imported: each value against its default."""

import re
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.cli.hydra_compat import read_yaml
from experiments.cli.trust import NODES
from experiments.common.errors import BadInputError, suggest

STEP_SIZES = ("bilevel.Relative", "bilevel.InverseTime", "bilevel.Decay")
REFERENCE = re.compile(r"\$\{(\w+)\}")
LEAST = {"steps": 1, "every": 1, "seed": 0, "starts": 1, "start_steps": 1, "early_stopping": 1}
LARGEST_SEED = 2**32 - 1  # that NumPy takes
CHOICES = {"precision": (None, "float32", "float64"), "progress": ("auto", "plain", "off")}
CHOICES |= {"evidence": ("auto", "full", "off")}
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
KINDS |= {dict: "named settings", list: "a list"}


def check(settings: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise unless every value is of the kind of its default; all mistakes at once.

    Raises
    ------
    BadInputError : values of another kind, or unknown settings.
    """
    wrong = _Comparison(settings, defaults).within(settings, defaults, "")
    for name, allowed in CHOICES.items():
        if (value := settings[name]) not in allowed:
            names = ", ".join("null" if a is None else a for a in allowed)
            wrong.append(f"{name}: expected one of {names}, got {value!r}")
    if not isinstance(cache := settings["compile_cache"], str | None):
        wrong.append(f"compile_cache: expected a folder or null, got {cache!r}")
    if (value := settings["early_stopping"]) is not None and not _is_a(value, int):
        wrong.append(f"early_stopping: expected an integer or null, got {value!r}")
    tol = settings.get("tol")
    if tol not in (None, "auto") and not (_is_a(tol, float) and 0 <= tol < 1):
        wrong.append(f"tol: expected a number from 0 to 1, auto or null, got {tol!r}")
    devices, hosts = settings["mesh"]["data"], settings["mesh"]["hosts"]
    if devices is not None and not (_is_a(devices, int) and devices > 0):
        wrong.append(f"mesh.data: expected an integer of at least 1 or null, got {devices!r}")
    if hosts not in (None, False) and devices is None:
        wrong.append("mesh.hosts: all of their devices take part; say how many, mesh.data=N")
    if _is_a(value := settings["max_error"], float) and not value > 0:
        wrong.append(f"max_error: expected a number above 0, or null for any, got {value}")
    if _is_a(value := settings["limit"], float) and not value > 0:
        wrong.append(f"limit: expected a number above 0, got {value}")
    if _is_a(value := settings["seed"], int) and value > LARGEST_SEED:
        wrong.append(f"seed: expected an integer of at most {LARGEST_SEED}, got {value}")
    for name, least in LEAST.items():
        if _is_a(value := settings[name], int) and value < least:
            wrong.append(f"{name}: expected an integer of at least {least}, got {value}")
    for name in NODES:
        if isinstance(node := settings.get(name), dict) and "_target_" not in node:
            wrong.append(f"{name}: expected _target_, the name of what is to be made; it has none")
    if wrong:
        raise BadInputError("\n".join(wrong))


def defaults(choices: dict[str, str], sources: list[Path]) -> dict[str, Any]:
    """What the chosen leaves hold before anything changed it, to compare kinds with.

    Of a noun without a choice nothing is known but that it is a node.
    """
    tree = _read("config", sources)
    return tree | {
        node: _read(f"{node}/{choices[node]}", sources) if node in choices else {} for node in NODES
    }


def _read(name: str, sources: list[Path]) -> dict[str, Any]:
    for source in sources:
        if (path := source / f"{name}.yaml").is_file():
            leaf = deepcopy(_leaf(path, path.stat().st_mtime_ns))  # the caller's own
            return {key: leaf[key] for key in leaf if key not in ("defaults", "hydra")}
    return {}


@cache
def _leaf(path: Path, changed: int) -> dict[str, Any]:
    """Read once, unless it was `changed` since: the jobs of a sweep ask for the same files."""
    del changed
    return read_yaml(path)


@dataclass(frozen=True)
class _Comparison:
    """Of all settings with all defaults, which references within them point into."""

    settings: dict[str, Any]
    defaults: dict[str, Any]

    def within(self, value: dict[str, Any], default: dict[str, Any], where: str) -> list[str]:
        """What is wrong with the settings `value` of the node `where`."""
        wrong = []
        for key, child in value.items():
            path = f"{where}.{key}" if where else str(key)
            if key in default:
                wrong += self.between(child, default[key], path)
            elif default and "_target_" not in default:  # a target knows its settings itself
                wrong.append(f"{path}: there is no such setting. {suggest(str(key), default)}")
        return wrong

    def between(self, value: Any, default: Any, where: str) -> list[str]:
        """What is wrong with one value."""
        if isinstance(default, str) and (reference := REFERENCE.fullmatch(default)):
            name = reference[1]
            if value == self.settings.get(name):
                return []  # said once, where it points to
            if name in NODES and not isinstance(value, dict):
                return [f"{where}: expected a {name}, got {value!r}. Choose one by {name}=NAME"]
            default = self.defaults.get(name)
        if isinstance(default, str) and "${" in default:
            return []  # computed: of no known kind
        if isinstance(value, dict):
            if isinstance(default, dict):
                return self.within(value, default, where)
            if "_target_" in value:
                return []  # an object in place of a number
        if where == "tol":
            return []  # a number or a word
        if isinstance(value, dict | list) and isinstance(default, str):
            return []  # what a name stands for, spelled out: groups in place of `per_input`
        if isinstance(default, dict) and default.get("_target_") in STEP_SIZES:
            default = 1.0  # a number in place of the object
        if value is None or default is None or _is_a(value, type(default)):
            return []
        return [f"{where}: expected {KINDS[type(default)]}, got {value!r}"]


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = int if kind is int else int | float
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, kind)
