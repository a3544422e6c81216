"""A second validation set: the outer loop over-fits the first one as any optimiser does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree, dtype, register_node, validation


@dataclass(frozen=True)
class EarlyStopping:
    """Keep the best point by a loss that the outer loop does not descend; stop when it is past.

    ``tune(..., stopping=EarlyStopping(...))`` evaluates ``loss(params, hyper, data)`` at every
    outer step, inside the compiled loop, and adds it to the history as ``held_out``. The result
    has the ``hyper`` and ``params`` of the smallest one. The run ends after ``patience`` steps in a
    row that did not improve on it.

    Parameters
    ----------
    loss : ``(params, hyper, data) -> ()``; usually ``problem.outer``.
    data : examples that neither level sees.
    patience : outer steps to go on without improvement; a number that never recompiles.
    least : an improvement of less than this does not count (though the point is kept).

    Raises
    ------
    ValueError : ``patience`` below 1, a negative ``least``, data that are not finite.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, bilevel as bl
    >>> outer = lambda w, h, x: jnp.mean((w - x) ** 2) / 2
    >>> inner = lambda w, h, x: outer(w, h, x) + jnp.exp(h) * w**2 / 2
    >>> problem = bl.Problem(inner, outer, quadratic=True)
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.0]))
    >>> arguments = problem, bl.ClosedForm(), optax.adam(0.1), jnp.array(-2.0), jnp.array(0.0), data
    >>> stopping = bl.EarlyStopping(outer, jnp.array([1.5]), patience=5)
    >>> result = bl.tune(*arguments, steps=60, key=jax.random.key(0), stopping=stopping)
    >>> len(result.history["held_out"]), result.history["held_out"].argmin().item()
    (15, 9)
    """

    loss: Callable[[PyTree, PyTree, PyTree], Array]
    data: PyTree
    patience: Any = 10
    least: Any = 0.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not callable(self.loss):
            raise TypeError(validation.not_callable("EarlyStopping.loss", self.loss))
        if isinstance(self.patience, int):
            validation.require_positive_int("EarlyStopping", "patience", self.patience)
        if isinstance(self.least, int | float) and not self.least >= 0:
            raise ValueError(f"EarlyStopping: least must be at least 0, got {self.least}.")
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.data):
            if isinstance(leaf, jax.Array) or hasattr(leaf, "__array__"):
                validation.require_finite("EarlyStopping.data", path, leaf)


register_node(EarlyStopping, data_fields=["data", "patience", "least"], meta_fields=["loss"])


class Best(NamedTuple):
    """The best point so far, part of the run's state.

    ``loss``, ``()``, there; ``mark``, ``()``, the last one that was an improvement; ``waited``,
    ``()``, outer steps since; ``step``, ``()``, of the best; ``last``, ``()``, the newest loss.
    """

    hyper: PyTree
    params: PyTree
    loss: Array
    mark: Array
    waited: Array
    step: Array
    last: Array


def begin(stopping: EarlyStopping | None, hyper: PyTree, params: PyTree) -> Best | None:
    """Before the first step: anything is better.

    Raises
    ------
    ValueError : the loss fails on these structures, or gives no scalar.
    """
    if stopping is None:
        return None
    try:
        out = jax.eval_shape(stopping.loss, params, hyper, stopping.data)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"EarlyStopping.loss failed on params {validation.describe(params)}, hyper "
            f"{validation.describe(hyper)}, data {validation.describe(stopping.data)}: {error}"
        ) from error
    if jax.tree.structure(out) != jax.tree.structure(0) or out.shape != ():
        raise ValueError(
            f"EarlyStopping.loss must return a scalar, got {validation.describe(out)}. "
            "Take the mean."
        )
    worst, none = jnp.full((), jnp.inf, dtype(params)), jnp.zeros((), jnp.int32)
    return Best(hyper, params, worst, worst, none, none, worst)


def require_begun(stopping: EarlyStopping | None, state: Any) -> None:
    """Raise unless the state to go on from has a best point, where one is asked for."""
    if stopping is not None and state.best is None:
        raise ValueError(
            "tune: the state comes from a run without early stopping, so no best point is known. "
            "Go on without stopping=, or start anew from its hyper."
        )


def observe(stopping: EarlyStopping | None, state: Any) -> Any:
    """The outer loop's state with its last point judged."""
    if stopping is None:
        return state
    best, hyper, params = state.best, state.hyper, state.lower.params
    loss = jnp.asarray(stopping.loss(params, hyper, stopping.data), best.loss.dtype)
    better = loss < best.loss
    counts = loss < best.mark - stopping.least
    waited = jnp.where(counts, 0, best.waited + 1)

    def choose(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

    now = Best(
        choose(hyper, best.hyper),
        choose(params, best.params),
        choose(loss, best.loss),
        jnp.where(counts, loss, best.mark),
        waited,
        choose(state.step - 1, best.step),
        loss,
    )
    return replace(state, best=now)


def columns(stopping: EarlyStopping | None, state: Any) -> dict[str, Array]:
    """What the history says."""
    return {} if stopping is None else {"held_out": state.best.last}


def over(stopping: EarlyStopping | None, state: Any) -> Array:
    """Whether to stop; ``()``, boolean."""
    return jnp.array(False) if stopping is None else state.best.waited >= stopping.patience


def say(stopping: EarlyStopping, state: Any) -> str:
    """The message of a run that has stopped."""
    return (
        f"stopped early after {int(state.step)} outer steps: no better held-out loss in the last "
        f"{int(state.best.waited)}. Row {int(state.best.step)} of the history is returned."
    )
