"""Losses with keys, a model state and side results, as plain functions of params, hyper, batch.

Everything that differentiates or minimises a loss sees a :class:`BoundLoss`: the user's function at
a key and at a model state that are held. A solver's step has a key and a state of its own, and
shows them to the loss together with the minibatch.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core.problem import Data, Problem, count_examples
from bilevel.core.rows import draw_rows
from bilevel.utils import (
    DataTree,
    Hyper,
    Key,
    Params,
    PyTree,
    Scalar,
    Scalars,
    describe,
    register_node,
    require_positive_int,
)

# Numbers that no step of a solver has, folded into its key or that of a call.
_STREAMS = {"inner": 2**31 - 2, "outer": 2**31 - 3, "start": 2**31 - 4, "rows": 2**31 - 5}


def loss_key(key: Key, level: str) -> Array:
    """Return the key that a loss of a stochastic problem sees.

    With the key of a call: that of the outer loss (``"outer"``), of ``start`` (``"start"``), and of
    the inner loss where it is evaluated on all rows (``"inner"``: evidence, the adjoint system). In
    step k of a solver, with ``jax.random.fold_in(key, k)``: that of the inner loss and ``running``.

    Examples
    --------
    >>> import jax, bilevel as bl
    >>> key = jax.random.key(0)
    >>> of_first_step = bl.loss_key(jax.random.fold_in(key, 0), "inner")
    >>> of_outer_loss = bl.loss_key(key, "outer")
    """
    if level not in _STREAMS:
        raise ValueError(f"loss_key: level must be one of {tuple(_STREAMS)}, got {level!r}.")
    return jax.random.fold_in(key, _STREAMS[level])


@dataclass(frozen=True)
class ShownBatch:
    """A minibatch, with the model state and the key that a solver's step shows its loss."""

    batch: DataTree
    model_state: PyTree
    key: Key | None


register_node(ShownBatch)


class LossResult(NamedTuple):
    """What a user's loss returns: value, ``()``, new model state and side results, or ``None``."""

    value: Scalars
    model_state: PyTree = None
    aux: PyTree = None


@dataclass(frozen=True, eq=False)
class BoundLoss:
    """``problem.inner``, ``outer`` or ``running``, a function of params, hyper and batch alone.

    ``problem`` is the user's. Model state and key are held, but for a :class:`ShownBatch`, which
    has its own.
    """

    problem: Problem
    level: str
    model_state: PyTree = None
    key: Key | None = None

    def __call__(self, params: Params, hyper: Hyper, batch: DataTree | ShownBatch) -> Scalar:
        """Return the loss."""
        return self.evaluate(params, hyper, batch).value

    def in_dtype(self, dtype: object) -> "BoundLoss":
        """Return the loss computing in the dtype of its problem; ``None``: in that of params."""
        user = self.problem.exact if dtype is None else self.problem
        return replace(self, problem=user)

    def evaluate(self, params: Params, hyper: Hyper, batch: DataTree | ShownBatch) -> LossResult:
        """Return all that the user's loss returns."""
        if not isinstance(batch, ShownBatch):
            batch = ShownBatch(batch, self.model_state, self.key)
        # New containers: those of flax.nnx refuse to change inside a transformation of JAX that
        # they come from outside of.
        params, state = jax.tree.map(lambda x: x, (params, batch.model_state))
        extra = (state,) if self.problem.has_state else ()
        extra += (batch.key,) if self.problem.stochastic else ()
        out = getattr(self.problem, self.level)(params, hyper, batch.batch, *extra)
        return _split_result(self.problem, self.level, out)


@dataclass(frozen=True, eq=False)
class BoundStart:
    """``problem.start`` at a key that is held."""

    problem: Problem
    key: Key

    def __call__(self, hyper: Hyper, params: Params) -> Params:
        """Return the start point."""
        return self.problem.start(hyper, params, self.key)  # pyright: ignore


def require_model_state(problem: Problem, model_state: PyTree) -> None:
    """Raise ``ValueError`` unless there is a model state if and only if the problem has one."""
    if problem.has_state and model_state is None:
        raise ValueError(
            "model_state is missing: the problem has_state, so say where it begins, for example "
            "model_state=variables['batch_stats']."
        )
    if model_state is not None and not problem.has_state:
        raise ValueError(
            "model_state is given, and the losses take none: make it Problem(..., has_state=True)."
        )


def _split_result(problem: Problem, level: str, out: PyTree) -> LossResult:
    stateful = problem.has_state and level == "inner"
    parts: tuple[PyTree, ...] = out if isinstance(out, tuple) else (out,)
    most = 1 + stateful + (problem.has_aux and level != "running")
    if not 1 + stateful <= len(parts) <= most:
        names = ["loss"] + ["new model state"] * stateful + ["side results"] * (most > 1 + stateful)
        raise ValueError(
            f"problem.{level} must return ({', '.join(names)}) with has_state={problem.has_state} "
            f"and has_aux={problem.has_aux}, got {describe(out)}."
        )
    state = parts[1] if stateful else None
    return LossResult(parts[0], state, parts[-1] if len(parts) > 1 + stateful else None)


def bind_losses(problem: Problem, key: Key, model_state: PyTree = None) -> Problem:
    """Return the problem with plain losses: at the keys of a call, and at a model state.

    A problem of plain losses comes back as it is; a bound one is bound anew.
    """
    if problem.is_plain:
        return problem
    user = problem.inner.problem if isinstance(problem.inner, BoundLoss) else problem
    keys = dict.fromkeys(_STREAMS)
    if user.stochastic:
        keys = {level: loss_key(key, level) for level in _STREAMS}
    inner, outer = (
        BoundLoss(user, level, model_state, keys[level]) for level in ("inner", "outer")
    )
    start = user.start
    if start is not None and user.stochastic:
        start = BoundStart(user, keys["start"])  # pyright: ignore[reportArgumentType]
    return replace(problem, inner=inner, outer=outer, start=start)


def draw_outer(data: Data, size: int | None, key: Key) -> Data:
    """Return the data with ``size`` of the outer rows, drawn with replacement; ``None``: all.

    So the outer loss, a mean over them, is unbiased, and so is every hypergradient that is linear
    in its gradient.

    Raises
    ------
    ValueError : a size that is not positive, or above the number of rows.
    """
    if size is None:
        return data
    n = count_examples(data.outer)
    require_positive_int("estimators", "outer_batch_size", size)
    if size > n:
        raise ValueError(
            f"outer_batch_size={size} is larger than the number of outer examples, {n}. Use a "
            "smaller one, or None for all."
        )
    rows = draw_rows(loss_key(key, "rows"), size, n)
    return replace(data, outer=jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data.outer))


def freeze_losses(problem: Problem, key: Key, model_state: PyTree = None) -> Problem:
    """Return a problem of plain losses: at one key for all steps, and one model state."""
    held = bind_losses(problem, key, model_state)
    return replace(held, stochastic=False, has_state=False, has_aux=False)


def rebind_key(problem: Problem, key: Key) -> Problem:
    """Return a bound problem at another key; any other as it is."""
    if not isinstance(problem.inner, BoundLoss):
        return problem
    return bind_losses(problem, key, problem.inner.model_state)


def hold_model_state(problem: Problem, solver_state: PyTree) -> Problem:
    """Return a bound problem at the model state within a solver's; any other as it is."""
    if not (isinstance(problem.inner, BoundLoss) and isinstance(problem.outer, BoundLoss)):
        return problem
    if not problem.has_state:  # frozen, perhaps at a state of its own
        return problem
    held = getattr(solver_state, "model_state", None)
    inner, outer = (replace(x, model_state=held) for x in (problem.inner, problem.outer))
    return replace(problem, inner=inner, outer=outer)
