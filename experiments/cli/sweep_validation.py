"""Hydra's sweeper composes every job before the first one begins, and again when it begins.

The first time finds misspelt names. For that one job of each kind will do: jobs that differ in
values only are legal together, so 200 seeds are composed once, not 200 times, before work starts.
Hydra has no setting for that, and takes a sweeper of one's own from a plugin's package only, so its
method is replaced while a sweep is being made (docs/decisions.md has the measurement).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.plugins.sweeper import Sweeper

Job = Sequence[str]


def one_of_each(batch: Sequence[Job], groups: set[str]) -> list[Job]:
    """Return the first job of each kind: leaves of groups are part of it, values are not."""
    kinds: dict[tuple[str, ...], Job] = {}
    for job in batch:
        kinds.setdefault(tuple(kind_of(override, groups) for override in job), job)
    return list(kinds.values())


def kind_of(override: str, groups: set[str]) -> str:
    """Return the name of what is given a plain value; all of what may choose a leaf or refer."""
    name, _, value = override.partition("=")
    key = name.lstrip("+~").partition("@")[0]
    plain = "/" not in name and key not in groups
    # What is no plain word or number may hold a reference: each is looked at.
    return name if plain and not set(value) & set("${}[]'\"") else override


@contextmanager
def checked_once() -> Iterator[None]:
    """Let Hydra look at one job of each kind while a sweep is being made."""
    whole = Sweeper.validate_batch_is_legal

    def validate(self: Any, batch: Sequence[Job]) -> None:
        groups = set(self.hydra_context.config_loader.list_groups(""))
        whole(self, one_of_each(batch, groups))

    Sweeper.validate_batch_is_legal = validate
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = whole
