"""Hydra's sweeper composes every job before the first one begins, and again when it begins.

The first time finds misspelt names. For that one job of each kind will do: jobs that differ in
values only are legal together, so 200 seeds are composed once, not 200 times (18 s of processor
time), before work starts.
"""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins

Job = Sequence[str]


def one_of_each(batch: Sequence[Job], groups: set[str]) -> list[Job]:
    """Return the first job of each kind; the leaf of a group is part of the kind, a value is not."""
    kinds: dict[tuple[str, ...], Job] = {}
    for job in batch:
        kinds.setdefault(tuple(_kind(override, groups) for override in job), job)
    return list(kinds.values())


def _kind(override: str, groups: set[str]) -> str:
    name, _, value = override.partition("=")
    key = name.lstrip("+~").partition("@")[0]
    plain = "/" not in name and key not in groups
    # What is no plain word or number may hold a reference: each is looked at.
    return name if plain and not set(value) & set("${}[]'\"") else override


class CheckedOnce(BasicSweeper):
    """Hydra's own sweeper, which looks at one job of each kind before work starts."""

    def validate_batch_is_legal(self, batch: Sequence[Job]) -> None:
        """Compose the first job of each kind.

        Raises
        ------
        ConfigCompositionException : the names of a job do not exist.
        """
        assert self.config_loader is not None
        groups = set(self.config_loader.list_groups(""))
        super().validate_batch_is_legal(one_of_each(batch, groups))


def register_sweeper() -> None:
    """Tell Hydra of the sweeper that `conf/hydra/sweeper/checked_once.yaml` names."""
    Plugins.instance().register(CheckedOnce)
