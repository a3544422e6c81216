"""The hooks of a call sorted by what they do, and the keywords that hooks have replaced."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, TypeVar, cast

from bilevel.core import Estimate
from bilevel.tuning.adaptive import Adaptive
from bilevel.tuning.divergence import Divergence
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.hooks import Columns, Hook, Hooks, Record, name_of
from bilevel.tuning.result import Result
from bilevel.utils import PyTree, require_positive_int

_T = TypeVar("_T")


@dataclass(frozen=True)
class Blocks:
    """How many outer steps one compiled call makes, and what is called after each.

    Parameters
    ----------
    every : outer steps per compiled call: one length, so that every run shares one program.
    callback : called with the :class:`bilevel.Result` so far after every ``every`` steps (not under
        ``jit`` or ``vmap``).

    Examples
    --------
    >>> import bilevel as bl
    >>> hook = bl.Blocks(every=10, callback=lambda result: print(result.history["value"][-1]))
    """

    every: int = 32
    callback: Callable[[Result], None] | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Blocks", "every", self.every)


AnyHook = Hook | Divergence | Blocks


class Keywords(TypedDict, total=False):
    """What ``tune`` and ``restarts`` took before there were hooks."""

    record: Callable[[PyTree, PyTree, Estimate], Columns] | None
    adaptive: bool | Adaptive
    stopping: EarlyStopping | None
    callback: Callable[[Result], None] | None
    every: int
    limit: float


class Options(NamedTuple):
    """The hooks of a call: those that look at steps, and the two that are about the loop itself."""

    hooks: Hooks
    divergence: Divergence
    blocks: Blocks


def sort_hooks(owner: str, hooks: Iterable[AnyHook], old: Keywords) -> Options:
    """Return the hooks by kind, those that old keywords stand for included.

    Raises
    ------
    TypeError : something that is no hook, or an unknown keyword.
    ValueError : two hooks of one class, of which the state could remember one only.
    """
    given = [*hooks, *_from_keywords(owner, old)]
    for hook in given:
        parts = ("init", "update", "columns", "done")
        fits = all(callable(getattr(hook, part, None)) for part in parts)
        if isinstance(hook, type) or not (fits or isinstance(hook, Divergence | Blocks)):
            raise TypeError(
                f"{owner}: hooks are objects with init, update, columns and done, such as "
                f"bl.Record(fn) or bl.EarlyStopping(...), got {hook!r}."
            )
    names = [name_of(cast(Hook, hook)) for hook in given if not isinstance(hook, Record)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{owner}: more than one hook of the class {', '.join(twice)}.")
    watching = tuple(hook for hook in given if not isinstance(hook, Divergence | Blocks))
    return Options(
        watching, find_hook(given, Divergence) or Divergence(), find_hook(given, Blocks) or Blocks()
    )


def find_hook(hooks: Iterable[AnyHook], kind: type[_T]) -> _T | None:
    """Return the hook of this class, ``None`` if there is none."""
    return next((hook for hook in hooks if isinstance(hook, kind)), None)


def _from_keywords(owner: str, old: Keywords) -> list[AnyHook]:
    if unknown := sorted(set(old) - set(Keywords.__annotations__)):
        raise TypeError(f"{owner}() got an unexpected keyword argument {unknown[0]!r}")
    if not old:
        return []
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
        stacklevel=4,
    )
    return hooks
