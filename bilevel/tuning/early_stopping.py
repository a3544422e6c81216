"""A second validation set: the outer loop over-fits the first one as any optimiser does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.tuning.hooks import name_of
from bilevel.tuning.state import Columns, State, Step
from bilevel.utils import (
    PyTree,
    describe,
    dtype,
    not_callable,
    register_node,
    require_finite,
    require_positive_int,
)


@dataclass(frozen=True)
class EarlyStopping:
    """Keep the best point by a loss that the outer loop does not descend; stop when it is past.

    ``tune(..., hooks=[EarlyStopping(...)])`` evaluates ``loss(params, hyper, data)`` at every
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
    >>> result = bl.tune(*arguments, steps=60, key=jax.random.key(0), hooks=[stopping])
    >>> len(result.history["held_out"]), result.history["held_out"].argmin().item()
    (15, 9)
    """

    loss: Callable[[PyTree, PyTree, PyTree], Array]
    data: PyTree
    patience: int | Array = 10
    least: float | Array = 0.0

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if not callable(self.loss):
            raise TypeError(not_callable("EarlyStopping.loss", self.loss))
        if isinstance(self.patience, int):
            require_positive_int("EarlyStopping", "patience", self.patience)
        if isinstance(self.least, int | float) and not self.least >= 0:
            raise ValueError(f"EarlyStopping: least must be at least 0, got {self.least}.")
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.data):
            if isinstance(leaf, jax.Array) or hasattr(leaf, "__array__"):
                require_finite("EarlyStopping.data", path, leaf)

    def init(self, hyper: PyTree, params: PyTree) -> "Best":
        """Return what is known before the first step: anything is better.

        Raises
        ------
        ValueError : the loss fails on these structures, or gives no scalar.
        """
        try:
            out = jax.eval_shape(self.loss, params, hyper, self.data)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"EarlyStopping.loss failed on params {describe(params)}, hyper "
                f"{describe(hyper)}, data {describe(self.data)}: {error}"
            ) from error
        if jax.tree.structure(out) != jax.tree.structure(0) or out.shape != ():
            raise ValueError(
                f"EarlyStopping.loss must return a scalar, got {describe(out)}. Take the mean."
            )
        worst, none = jnp.full((), jnp.inf, dtype(params)), jnp.zeros((), jnp.int32)
        return Best(hyper, params, worst, worst, none, none, worst)

    def update(self, memory: "Best", step: Step) -> "Best":
        """Return the best point so far, the step's own included."""
        best, state = memory, step.state
        hyper, params = state.hyper, state.lower.params
        loss = jnp.asarray(self.loss(params, hyper, self.data), best.loss.dtype)
        better = loss < best.loss
        counts = loss < best.mark - self.least
        waited = jnp.where(counts, 0, best.waited + 1)

        def choose(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

        return Best(
            choose(hyper, best.hyper),
            choose(params, best.params),
            choose(loss, best.loss),
            jnp.where(counts, loss, best.mark),
            waited,
            choose(state.step - 1, best.step),
            loss,
        )

    def columns(self, memory: "Best", step: Step) -> Columns:
        """Return the loss at this step, ``held_out``."""
        del step
        return {"held_out": memory.last}

    def done(self, memory: "Best", begun: "Best") -> Array:
        """Return whether the best is past."""
        del begun
        return memory.waited >= self.patience

    def explain(self, state: State) -> str:
        """Return the message of a run that has ended by this."""
        best = self.best_of(state)
        return (
            f"stopped early after {int(state.step)} outer steps: no better held-out loss in the "
            f"last {int(best.waited)}. Row {int(best.step)} of the history is returned."
        )

    def best_of(self, state: State) -> "Best":
        """Return the best point of a run with this hook.

        Raises
        ------
        ValueError : a run without it.
        """
        if (best := state.memory.get(name_of(self))) is None:
            raise ValueError(
                "tune: the state comes from a run without early stopping, so no best point is "
                "known. Go on without EarlyStopping, or start anew from its hyper."
            )
        return best


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
