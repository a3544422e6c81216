"""Several runs at once, from different start points, of which the best is kept."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimator, Problem
from bilevel.estimators import hypergradient
from bilevel.outer import OuterRule
from bilevel.tuning.diagnosis import DivergenceWarning
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.hooks import AnyHook, find_hook, sort_hooks
from bilevel.tuning.keywords import Keywords, translate_keywords
from bilevel.tuning.state import Result
from bilevel.tuning.tune import tune
from bilevel.utils import (
    PyTree,
    is_traced,
    leaf_address,
    register_node,
    require_positive_int,
    require_variables,
    strip_weak_types,
)


@dataclass(frozen=True)
class Restarts:
    """What the runs from all start points found.

    Parameters
    ----------
    best : the run that is kept, as :func:`bilevel.tune` returns it.
    index : ``()``, which of ``runs`` that is.
    values : ``[R]``, what they are judged by: the last outer value, or with early stopping the best
        held-out loss; infinite for those that are excluded.
    runs : all of them: a :class:`bilevel.Result` with a leading axis of R.
    chosen : ``[R]``, which of the start points each run set out from.
    scouted : ``[n]``, outer values by which they were chosen; ``None`` if all were.
    message : ``None``, or which runs diverged.
    """

    best: Result
    index: Array
    values: Array
    runs: Result
    chosen: Array
    scouted: Array | None = None
    message: str | None = None


register_node(
    Restarts,
    data_fields=["best", "index", "values", "runs", "chosen", "scouted"],
    meta_fields=["message"],
)


def restarts(
    problem: Problem,
    estimator: Estimator,
    outer: OuterRule,
    starts: PyTree,
    params: PyTree,
    data: Data,
    *,
    steps: int,
    key: Array,
    keep: int | None = None,
    scout: Estimator | None = None,
    warm_start: bool = True,
    hooks: Sequence[AnyHook] = (),
    **old: Unpack[Keywords],
) -> Restarts:
    """Run :func:`bilevel.tune` from all start points in one compiled program; keep the best.

    The best is the one with the smallest last outer value (with ``EarlyStopping``, the smallest
    held-out loss at its best step) among those that did not diverge and are finite. The value of a
    stochastic estimator is a noisy judge: give it a longer window, or a held-out loss.

    Hybrid start: with ``keep``, all points are first judged by one call of ``scout``, and only the
    ``keep`` of the smallest outer value are descended from.

    Parameters
    ----------
    problem, estimator, outer, data, steps, warm_start, hooks : as for ``tune``, with neither
        ``Adaptive`` nor ``Blocks``.
    starts : like ``hyper`` with one more leading axis of n points, for example from
        :func:`bilevel.population`, in natural units.
    params : where every inner solve starts.
    key : run i is that of ``tune(..., key=jax.random.fold_in(key, i))``.
    keep : how many points to descend from; by default all.
    scout : an estimator whose value is enough to choose by: few inner steps and a cheap derivative,
        such as ``OneStep(solver, steps=20)``; by default ``estimator``.

    Warns
    -----
    DivergenceWarning : runs that diverged, by number.

    Raises
    ------
    ValueError : as ``tune``; start points that differ in number; ``keep`` out of range.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - h) ** 2) / 2,
    ...     outer=lambda w, h, x: jnp.sin(3 * w) + w**2 / 4,  # minima at -0.5 and 1.5
    ... )
    >>> data = bl.Data(inner=jnp.zeros(1), outer=jnp.zeros(1))
    >>> found = bl.restarts(problem, bl.Implicit(bl.GradientDescent(1.0), 1), optax.adam(0.1),
    ...                     jnp.array([1.0, 0.0]), jnp.array(0.0), data, steps=100,
    ...                     key=jax.random.key(0))
    >>> found.runs.hyper.round(1), found.index.item()
    (Array([ 1.5, -0.5], dtype=float32), 1)
    """
    if old:
        hooks = [*hooks, *translate_keywords("restarts", old)]
    options = sort_hooks("restarts", hooks)
    stopping = find_hook(options.hooks, EarlyStopping)
    require_variables("starts", starts)
    starts, n = strip_weak_types(starts), _number(starts)
    if problem.space is not None:
        problem.space.require(starts, "starts")
    keep = n if keep is None else keep
    require_positive_int("restarts", "keep", keep)
    if keep > n or (scout is not None and keep == n):
        raise ValueError(f"restarts: keep={keep} must be below the number of start points, {n}.")
    chosen, scouted = jnp.arange(n), None
    if keep < n:
        judge = partial(
            _look, problem, scout or estimator, params, data, jax.random.fold_in(key, n)
        )
        scouted = jax.vmap(judge)(starts)
        chosen = jnp.argsort(jnp.where(jnp.isfinite(scouted), scouted, jnp.inf))[:keep]

    def run(start: PyTree, number: Array) -> Result:
        return tune(
            problem,
            estimator,
            outer,
            start,
            params,
            data,
            steps=steps,
            key=jax.random.fold_in(key, number),
            warm_start=warm_start,
            hooks=[*options.hooks, options.divergence],
        )

    runs = jax.vmap(run)(jax.tree.map(lambda leaf: leaf[chosen], starts), chosen)
    judged = runs.estimate.value if stopping is None else stopping.best_of(runs.state).loss
    lost = runs.diverged | ~jnp.isfinite(judged)
    values = jnp.where(lost, jnp.inf, judged)
    index = jnp.argmin(values)
    best = jax.tree.map(lambda leaf: leaf[index], runs)
    found = Restarts(best, index, values, runs, chosen, scouted)
    return found if is_traced(found) else _explained(found, lost, stopping)


def _number(starts: PyTree) -> int:
    """Return the length of the leading axis."""
    lengths = {
        leaf_address("starts", path): jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(starts)
    }
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            "restarts: every leaf of starts needs a leading axis of as many points, got "
            f"{lengths}. bl.population(problem, hyper, n, seed=0) makes them."
        )
    return next(iter(lengths.values()))


def _look(
    problem: Problem, scout: Estimator, params: PyTree, data: Data, key: Array, start: PyTree
) -> Array:
    """Return the outer value at a start point, with the same minibatches for all."""
    return hypergradient(problem, scout, start, params, data, key)[0].value


def _explained(found: Restarts, lost: Array, stopping: EarlyStopping | None) -> Restarts:
    """Return it with messages, and the history of the best cut where it ended."""
    best = found.best
    rows = int(best.state.step)
    history = {name: column[:rows] for name, column in best.history.items()}
    best = replace(best, history=history)
    if stopping is not None and best.stopped:
        best = replace(best, message=stopping.explain(best.state))
    message, numbers = None, [i for i, flag in enumerate(lost) if flag]
    if numbers:
        listed = ", ".join(map(str, numbers))
        message = (
            f"{len(numbers)} of {len(lost)} runs diverged and are excluded: {listed}. "
            "tune() from such a start point says why."
        )
        warnings.warn(message, DivergenceWarning, stacklevel=3)
    if len(numbers) == len(lost):
        best = replace(best, diverged=jnp.array(True), message=message)
    return replace(found, best=best, message=message)
