"""What a run does beside its steps: hooks of one protocol, over which the outer loop folds.

A hook sees every step inside the compiled loop. What it remembers is part of the run's state, under
the name of its class, so that a run may be cut anywhere and goes on bit for bit.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, cast

import jax.numpy as jnp
from jax import Array

from bilevel.core import Estimate, Estimator, MonitoredEstimator
from bilevel.outer import OuterRule
from bilevel.tuning.convergence import DEFAULT, Convergence
from bilevel.tuning.state import Columns, Divergence, Result, State, Step
from bilevel.utils import Number, PyTree, register_node, require_positive_int

_T = TypeVar("_T")


class Hook(Protocol):
    """What looks at every outer step. It is a frozen dataclass that is registered as a pytree."""

    def init(self, hyper: PyTree, params: PyTree) -> PyTree:
        """Return what the hook remembers before the first step; ``None`` for nothing."""
        ...

    def update(self, memory: PyTree, step: Step) -> PyTree:
        """Return what it remembers after a step."""
        ...

    def columns(self, memory: PyTree, step: Step) -> Columns:
        """Return what it adds to the step's row of the history, after ``update``."""
        ...

    def done(self, memory: PyTree, begun: PyTree) -> Array:
        """Return whether steps end here, ``()``, boolean, having begun with the memory ``begun``.

        If they end wherever they begin, ``done(memory, memory)``, the run is over.
        """
        ...


@dataclass(frozen=True)
class Record:
    """Adds ``fn(hyper, params, estimate)``, a dict of arrays, to the history at every step.

    Examples
    --------
    >>> import bilevel as bl
    >>> hook = bl.Record(lambda hyper, params, estimate: {"hyper": hyper})
    """

    fn: Callable[[PyTree, PyTree, Estimate], Columns]

    def init(self, hyper: PyTree, params: PyTree) -> None:
        """Return nothing: a record forgets."""
        del hyper, params

    def update(self, memory: None, step: Step) -> None:
        """Return nothing."""
        del memory, step

    def columns(self, memory: None, step: Step) -> Columns:
        """Return the columns of the user's function."""
        del memory
        return self.fn(step.state.hyper, step.state.lower.params, step.state.estimate)

    def done(self, memory: None, begun: None) -> Array:
        """Return that the run goes on."""
        del memory, begun
        return jnp.array(False)


register_node(Record, data_fields=[], meta_fields=["fn"])


@dataclass(frozen=True)
class Blocks:
    """How many outer steps one compiled call makes, and what is called after each.

    Parameters
    ----------
    every : outer steps per compiled call: one length, so that every run shares one program.
    callback : called with the :class:`bilevel.Result` so far after every ``every`` steps (not under
        ``jit`` or ``vmap``).
    compare : whether a run that makes all its steps ends with the better of two points, compared at
        equal accuracy: the best on record, and the last. Each costs four more estimates, with the
        same randomness for both, unless the values are exact. A run that is cut into calls
        compares in the last one.

    Examples
    --------
    >>> import bilevel as bl
    >>> hook = bl.Blocks(every=10, callback=lambda result: print(result.history["value"][-1]))
    """

    every: int = 32
    callback: Callable[[Result], None] | None = None
    compare: bool = True

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Blocks", "every", self.every)


Hooks = tuple[Hook, ...]
AnyHook = Hook | Divergence | Blocks


class Options(NamedTuple):
    """The hooks of a call: those that look at steps, and the two that are about the loop itself."""

    hooks: Hooks
    divergence: Divergence
    blocks: Blocks


def sort_hooks(owner: str, given: Sequence[AnyHook]) -> Options:
    """Return the hooks by kind.

    Raises
    ------
    TypeError : something that is no hook.
    ValueError : two hooks of one class, of which the state could remember one only.
    """
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


def add_convergence(
    hooks: Hooks, tol: Number | str | None, outer: OuterRule, estimator: Estimator
) -> Hooks:
    """Return the hooks with the one that ``tol`` stands for, unless there is one.

    ``"auto"`` is 1e-4 for the rules of :mod:`bilevel.outer`. An optax transformation is left to
    run: a schedule counts on its steps. So is a single-loop method, whose value never stands.

    Raises
    ------
    ValueError : another text, or ``tol`` outside [0, 1).
    """
    if isinstance(tol, str):
        if tol != "auto":
            raise ValueError(f"tune: tol must be a number, None or 'auto', got {tol!r}.")
        ours = type(outer).__module__.startswith("bilevel.outer.")
        tol = DEFAULT if ours and not isinstance(estimator, MonitoredEstimator) else None
    if tol is None or find_hook(hooks, Convergence) is not None:
        return hooks
    return (*hooks, Convergence(tol))


def find_hook(hooks: Iterable[AnyHook], kind: type[_T]) -> _T | None:
    """Return the hook of this class, ``None`` if there is none."""
    return next((hook for hook in hooks if isinstance(hook, kind)), None)


def name_of(hook: Hook) -> str:
    """Return the name under which the state keeps what a hook remembers."""
    return type(hook).__name__


def init_memory(hooks: Hooks, hyper: PyTree, params: PyTree) -> dict[str, PyTree]:
    """Return what all hooks remember before the first step."""
    begun = {name_of(hook): hook.init(hyper, params) for hook in hooks}
    return {name: memory for name, memory in begun.items() if memory is not None}


def resume_memory(hooks: Hooks, state: State) -> dict[str, PyTree]:
    """Return what a state remembers, and for new hooks what they do before their first step."""
    return init_memory(hooks, state.hyper, state.lower.params) | state.memory


def update_memory(hooks: Hooks, step: Step) -> dict[str, PyTree]:
    """Return what all hooks remember after a step; that of absent hooks stays as it is."""
    memory = step.state.memory
    updated = {name_of(hook): hook.update(memory.get(name_of(hook)), step) for hook in hooks}
    return memory | {name: new for name, new in updated.items() if new is not None}


def add_columns(hooks: Hooks, step: Step) -> Columns:
    """Return what all hooks add to a row of the history."""
    row: Columns = {}
    for hook in hooks:
        row |= hook.columns(step.state.memory.get(name_of(hook)), step)
    return row


def is_done(hooks: Hooks, state: State, begun: State) -> Array:
    """Return whether any hook ends the steps that began with the state ``begun``."""
    ended = jnp.array(False)
    for hook in hooks:
        name = name_of(hook)
        ended |= hook.done(state.memory.get(name), begun.memory.get(name))
    return ended
