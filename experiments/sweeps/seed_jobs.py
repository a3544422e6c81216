"""`vmap.seeds=32`: which runs go through one compiled program, and what each is called."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.compatibility import refuse_mismatched
from experiments.cli.hydra_compat import Launch, changed, folder_name, plain, write_yaml
from experiments.cli.settings import check, defaults
from experiments.cli.trust import refuse_untrusted
from experiments.common.errors import BadInputError
from experiments.storage.resume import flat, repeat
from experiments.sweeps.search_space import canonical

if TYPE_CHECKING:
    from omegaconf import DictConfig

NODE = "vmap"


@dataclass(frozen=True)
class Lane:
    """One of the runs, as if it had been started alone.

    Parameters
    ----------
    settings, overrides, command : its own, without `vmap`.
    folder : where its files go: the folder that a sweep over the same values would give it.
    config : composed, to be saved beside them.
    """

    settings: dict[str, Any]
    overrides: list[str]
    command: str
    folder: Path
    config: "DictConfig"

    def save_config(self) -> None:
        """Leave what a run of its own would: `resume=` looks for it."""
        write_yaml(self.folder / ".hydra" / "config.yaml", self.config)


def asked(config: "DictConfig") -> bool:
    """Whether the configuration stands for more than one run.

    Raises
    ------
    BadInputError : it does, and each over several devices.
    """
    node = config.get(NODE) or {}
    several = any(value is not None for value in node.values())
    if several and config["mesh"]["data"] is not None:
        raise BadInputError(
            "vmap and mesh: one program holds many runs or one run many devices. Sweep the seeds "
            "in place of vmap: -m mesh.data=N 'seed=range(8)'"
        )
    return several


def lanes(config: "DictConfig", launch: Launch) -> list[Lane]:
    """Every combination of the values below `vmap`, checked.

    Raises
    ------
    BadInputError : values that are no lists, settings that do not exist, values of a wrong kind.
    """
    axes = _axes(config)
    known = defaults(launch.choices, launch.sources)
    given = [f"{name}={text}" for name, text in canonical(launch.overrides).items()]
    given = [o for o in given if not _name(o).startswith(f"{NODE}.") and _name(o) not in axes]
    found = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        alone = changed(config, {**changes, NODE: {"seeds": None}})
        settings = plain(alone)
        check(settings, known)
        refuse_untrusted(settings, launch.overrides)
        refuse_mismatched(settings, launch.choices)
        overrides = given + [f"{name}={value}" for name, value in changes.items()]
        named = sorted(o for o in overrides if _name(o) not in launch.unnamed)
        folder = launch.folder / folder_name(",".join(named))
        again = repeat(overrides, launch.sources, sweep=False)
        found.append(Lane(settings, overrides, again, folder, alone))
    return found


def _axes(config: "DictConfig") -> dict[str, list[Any]]:
    """Setting -> its values; the seeds count up from `seed`."""
    node = plain(config)[NODE]
    seeds, axes = node.pop("seeds", None), {}
    if seeds is not None:
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise BadInputError(f"vmap.seeds: expected an integer of at least 1, got {seeds!r}")
        first = int(config["seed"])
        axes["seed"] = list(range(first, first + seeds))
    for name, values in flat(node).items():
        if not isinstance(values, list) or not values:
            raise BadInputError(
                f"vmap.{name}: expected a list of values such as [0.1,0.2], got {values!r}"
            )
        axes[name] = values
    return axes


def _name(override: str) -> str:
    return override.split("=")[0].lstrip("+~")
