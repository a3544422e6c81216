"""The keywords that hooks have replaced, for one more release."""

import warnings
from collections.abc import Callable
from typing import TypedDict

from bilevel.core import Estimate
from bilevel.tuning.adaptive import Adaptive
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.hooks import AnyHook, Blocks, Record
from bilevel.tuning.state import Columns, Divergence, Result
from bilevel.utils import PyTree


class Keywords(TypedDict, total=False):
    """What ``tune`` and ``restarts`` took before there were hooks."""

    record: Callable[[PyTree, PyTree, Estimate], Columns] | None
    adaptive: bool | Adaptive
    stopping: EarlyStopping | None
    callback: Callable[[Result], None] | None
    every: int
    limit: float


def translate_keywords(owner: str, old: Keywords) -> list[AnyHook]:
    """Return the hooks that old keywords stand for, with a warning.

    Raises
    ------
    TypeError : an unknown keyword.
    """
    if unknown := sorted(set(old) - set(Keywords.__annotations__)):
        raise TypeError(f"{owner}() got an unexpected keyword argument {unknown[0]!r}")
    hooks: list[AnyHook] = []
    if (record := old.get("record")) is not None:
        hooks.append(Record(record))
    adaptive = old.get("adaptive", False)
    if not isinstance(adaptive, bool | Adaptive):
        raise TypeError(
            f"{owner}: adaptive must be a boolean or bl.Adaptive(...), got {adaptive!r}."
        )
    if adaptive is not False:
        hooks.append(Adaptive() if adaptive is True else adaptive)
    if (stopping := old.get("stopping")) is not None:
        hooks.append(stopping)
    if "every" in old or "callback" in old:
        hooks.append(Blocks(old.get("every", Blocks.every), old.get("callback")))
    if "limit" in old:
        hooks.append(Divergence(old["limit"]))
    listed = ", ".join(f"{name}=" for name in sorted(old))
    named = ", ".join(type(hook).__name__ for hook in hooks)
    warnings.warn(
        f"{owner}: {listed} will go with the next release: write hooks=[...] with what they are "
        f"now: {named or 'nothing'}.",
        DeprecationWarning,
        stacklevel=3,
    )
    return hooks
