"""One composition for the jobs of a sweep that differ in values only.

Hydra composes every job anew when it begins: most of what a run of milliseconds costs beside its
numbers. Values from the command line are put into the configuration in the end, when all leaves
are chosen; so a job of a kind that this process has composed takes a copy of that, with its values
put in as Hydra does. Launchers call the method in their workers, which know no other place to say
so; it is replaced when a process imports the command line.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from experiments.cli.sweep_validation import kind_of

_WHOLE = ConfigLoaderImpl.load_sweep_config
_KNOWN: dict[Any, tuple[Any, DictConfig, list[Any]]] = {}
_GROUPS: dict[tuple[str, ...], set[str]] = {}
_MOST = 64  # kinds of jobs that are kept


def compose_once() -> None:
    """Let Hydra compose one job of each kind in this process."""
    ConfigLoaderImpl.load_sweep_config = _load


def _load(self: Any, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
    """Do what Hydra's method does, from a copy where a job of this kind was composed before."""
    hydra: Any = master_config.hydra
    folders = tuple(_folders(hydra))
    if folders not in _GROUPS:
        _GROUPS[folders] = {*self.list_groups("")}
    kind = tuple(_kind(override, _GROUPS[folders]) for override in sweep_overrides)
    about = hydra.job.config_name, *hydra.overrides.hydra, "", *folders, "", *kind
    known = _KNOWN.get(about)
    if known is not None and known[0] == _dates(known[1].hydra):
        return _with_values(known[1], known[2], sweep_overrides)
    config = _WHOLE(self, master_config, sweep_overrides)
    if len(_KNOWN) < _MOST:
        parsed = OverridesParser.create().parse_overrides(list(sweep_overrides))
        _KNOWN[about] = _dates(config.hydra), deepcopy(config), parsed
    return config


def _kind(override: str, groups: set[str]) -> str:
    """What decides over the leaves, or is put in otherwise than by its value, is part of it."""
    whole = override.startswith(("+", "~", "hydra."))
    return override if whole else kind_of(override, groups)


def _folders(hydra: Any) -> list[str]:
    return [source.path for source in hydra.runtime.config_sources if source.schema == "file"]


def _dates(hydra: Any) -> list[Any]:
    """When the files were changed that the configuration was composed of, or would be."""
    names = ["config", *(f"{group}/{leaf}" for group, leaf in hydra.runtime.choices.items())]
    paths = [Path(folder, f"{name}.yaml") for folder in _folders(hydra) for name in names]
    return [path.stat().st_mtime_ns if path.is_file() else None for path in paths]


def _with_values(known: DictConfig, parsed: list[Any], lines: list[str]) -> DictConfig:
    """A copy of a composed job's configuration with the values of another one."""
    other = [line for line, old in zip(lines, parsed, strict=True) if line != old.input_line]
    new = iter(OverridesParser.create().parse_overrides(other))
    now = [
        old if line == old.input_line else next(new)
        for line, old in zip(lines, parsed, strict=True)
    ]
    config = deepcopy(known)
    ConfigLoaderImpl._apply_overrides_to_config([o for o in now if o.input_line in other], config)
    job, task = config.hydra.job, [o for o in now if not o.is_hydra_override()]
    config.hydra.overrides.task = [override.input_line for override in task]
    words = job.config.override_dirname
    job.override_dirname = get_overrides_dirname(
        overrides=task,
        kv_sep=words.kv_sep,
        item_sep=words.item_sep,
        exclude_keys=list(words.exclude_keys),
    )
    return config
