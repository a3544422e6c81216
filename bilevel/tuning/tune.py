"""The second verb: descend the outer loss by its hypergradient."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimator, Problem, Stream, as_pytree, require_arguments
from bilevel.estimators import (
    bind_call,
    carry_model,
    check_losses,
    data_of_call,
    explain_modes,
    scale_work,
    solver_of,
)
from bilevel.outer import OuterRule
from bilevel.solvers import constant_stability_limit
from bilevel.tuning.adaptive import Adaptive, level_of, require_adaptive
from bilevel.tuning.diagnosis import (
    DivergenceWarning,
    explain_end,
    step_size_warning,
    warn_of_result,
)
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.ending import compare_points, make_result
from bilevel.tuning.history import join_rows
from bilevel.tuning.hooks import (
    AnyHook,
    Blocks,
    add_convergence,
    find_hook,
    is_done,
    resume_memory,
    sort_hooks,
)
from bilevel.tuning.keywords import Keywords, translate_keywords
from bilevel.tuning.loop import Block, Loop
from bilevel.tuning.state import Result, State
from bilevel.tuning.streaming import Feed, open_streams
from bilevel.utils import (
    Number,
    PyTree,
    RememberInterrupts,
    is_traced,
    require_positive_int,
    require_same,
    require_variables,
    strip_weak_types,
)


def tune(
    problem: Problem,
    estimator: Estimator,
    outer: OuterRule,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    *,
    steps: int,
    key: Array | None = None,
    state: State | None = None,
    warm_start: bool = True,
    model_state: PyTree = None,
    evidence: str | None = None,
    max_error: float | None = 0.5,
    tol: Number | str | None = "auto",
    hooks: Sequence[AnyHook] = (),
    **old: Unpack[Keywords],
) -> Result:
    """Descend ``h(hyper) = outer(w*(hyper), hyper)`` with any optax transformation.

    Each step moves ``hyper`` by the last estimate (the first step stays where it is) and estimates
    value and hypergradient there; the last estimate's move is made at the end. With
    ``problem.space`` free coordinates move (the chain rule is applied here). The whole run is
    compiled. When the inner solver diverges (typically because ``hyper`` raised the inner curvature
    past 2 / step size) it stops, warns with the cause, and returns the last good state.

    Parameters
    ----------
    problem, estimator, data : as for :func:`bilevel.hypergradient`; or data of a ``bl.Stream``.
    outer : a rule of :mod:`bilevel.outer`, such as ``bl.outer.Auto()``, which needs no step size;
        an optax transformation, or :func:`bilevel.transform`, whose numbers never recompile.
    hyper, params : where to start, float pytrees; with ``state`` only their structure counts.
    steps : outer steps to do (further ones, with ``state``).
    key : a JAX random key; with ``state`` its own key is used.
    state : ``result.state`` of an earlier run, to go on from it bit for bit.
    warm_start : start each inner solve where the last one ended (``False``: at ``params``).
    model_state : where that of a problem that ``has_state`` begins, by cold starts every time.
    evidence : ``"full"``, ``"auto"`` or ``"off"``, see :class:`bilevel.Problem`.
    max_error : warn where the last hypergradient's relative error is above this, and the error
        itself above this share of the largest hypergradient of the run: near an optimum it is
        mostly error, and harmless. ``None`` never warns.
    tol : the run ends where the value and the hypergradient say that it has converged, see
        :class:`bilevel.Convergence`: then ``steps`` is an upper bound. ``"auto"`` is 1e-4 for the
        rules of :mod:`bilevel.outer` and none for others; ``None`` makes every step.
    hooks : what the run does beside its steps, in the compiled loop:
        :class:`bilevel.Record` adds columns to ``history``; :class:`bilevel.EarlyStopping` judges
        every step on a second validation set, returns the best and stops when it is past;
        :class:`bilevel.Adaptive` doubles the inner work where the hypergradient's noise is too
        large; :class:`bilevel.Divergence` sets the limit at which a run counts as diverged;
        :class:`bilevel.Blocks` has a callback after every so many steps. Your own: ``extend.Hook``.
    old : keywords that hooks have replaced, for one more release, with a warning.

    Warns
    -----
    DivergenceWarning : the inner solver diverged; ``result.message`` has the same text. Also
        before the first step, if the step size is above the stability limit there and this is
        known to hold for the whole inner solve: a constant inner Hessian, no schedule, no prox.
    EvidenceWarning : the last hypergradient is known to be wrong by more than ``max_error``;
        ``result.message`` has the same text, and ``history["relative_error"]`` every step's number.

    Raises
    ------
    ValueError : structures that do not match, bad start values, what an estimator cannot see.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.exp(h) * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> estimator = bl.Implicit(bl.GradientDescent(step_size=0.5), steps=50)
    >>> result = bl.tune(problem, estimator, optax.adam(0.1), jnp.array(0.0), jnp.array(0.0), data,
    ...                  steps=200, key=jax.random.key(0))
    >>> jnp.exp(result.hyper).round(3)  # w* = 2 / (1 + e^h) = 1.5
    Array(0.333, dtype=float32)
    """
    options = sort_hooks("tune", [*hooks, *(translate_keywords("tune", old) if old else ())])
    problem = problem if evidence is None else replace(problem, evidence=evidence)
    if state is None and key is None:
        raise ValueError("tune needs key=jax.random.key(seed), or the state of an earlier run.")
    require_positive_int("tune", "steps", steps)
    adaptive = find_hook(options.hooks, Adaptive)
    feed = None
    if Stream in (type(data.inner), type(data.outer)):
        estimator, data, feed = open_streams(data, estimator, state, steps, adaptive is not None)
    require_arguments(problem, estimator, data, key if state is None else state.key)
    hyper, params = _variables(problem, hyper, params, state)
    begun = (key, None) if state is None else (state.key, state.lower)
    estimator = carry_model(problem, estimator, hyper, params, data, *begun, model_state)
    watching = add_convergence(options.hooks, tol, outer, estimator)
    parts = problem, estimator, as_pytree("tune", outer), data, watching
    loop = Loop(*parts, options.divergence, warm_start)
    with explain_modes(loop.estimator), RememberInterrupts() as interrupts:
        current = _begin(loop, hyper, params, key) if state is None else _resume(loop, state)
        traced = is_traced((loop, current))
        if adaptive is not None:
            require_adaptive(loop.estimator, current.estimate, traced)
        if traced:
            current, stop, history = _run(loop, current, jnp.asarray(steps), length=steps)
            return make_result(loop, current, stop, history)
        return _run_blocks(loop, current, steps, options.blocks, max_error, interrupts, feed)


_FEWEST = 32  # rows of a block, so that runs of fewer steps share one program


def _run_blocks(
    loop: Loop,
    current: State,
    steps: int,
    blocks: Blocks,
    most: float | None,
    heard: RememberInterrupts,
    feed: Feed | None,
) -> Result:
    """Return the result of ``steps`` outer steps, a compiled call after the other."""
    every, callback, rows, left = blocks.every, blocks.callback, [], steps
    length, estimator = min(every, max(steps, _FEWEST)), loop.estimator
    while True:
        # To the next multiple of ``every``; a block also ends where the inner work is to grow.
        count, begun = min(left, every - (steps - left) % every), int(current.step)
        if feed is not None:
            count, loop = 1, replace(loop, data=feed.take(begun))
        elif find_hook(loop.hooks, Adaptive) is not None:
            loop = replace(loop, estimator=scale_work(estimator, 2 ** level_of(current)))
        current, stop, new = _run(loop, current, jnp.asarray(count), length=length)
        left -= (made := int(current.step) - begun)
        rows.append(jax.tree.map(lambda column, n=made: column[:n], jax.device_get(new)))
        heard.check()
        over = bool(stop.diverged) or bool(is_done(loop.hooks, current, current))
        if over or not left or (callback is not None and (steps - left) % every == 0):
            rows = [join_rows(rows)]
            result = make_result(loop, current, stop, jax.tree.map(jnp.asarray, rows[0]))
            result = explain_end(loop, result, stop) if over else result
            if (over or not left) and not bool(stop.diverged):
                result = warn_of_result(loop, result, most)
                again = over or blocks.compare
                result = compare_points(loop, result, _run, length) if again else result
            if callback is not None:
                callback(result)
                heard.check()
            if over or not left:
                return result


@partial(jax.jit, static_argnames="length")
def _run(loop: Loop, state: State, count: Array, *, length: int) -> Block:
    return loop.run(state, count, length=length)


@jax.jit
def _init(
    loop: Loop, hyper: PyTree, params: PyTree, key: Array
) -> tuple[State, tuple[Array, Array] | None]:
    estimator, data = loop.estimator, loop.data
    problem = bind_call(loop.problem, estimator, None, key)
    check_losses(problem, hyper, params, data_of_call(estimator, data, key))
    state = loop.init(hyper, params, key)
    solver = solver_of(estimator, problem, hyper, params, data)
    return state, constant_stability_limit(problem, solver, hyper, state.lower, data, key)


def _begin(loop: Loop, hyper: PyTree, params: PyTree, key: Array | None) -> State:
    """Return the state before the first step; warn if the step size is known to be too large."""
    state, known = _init(loop, hyper, params, key)
    if known is not None and not is_traced(known) and (text := step_size_warning(*known)):
        warnings.warn(text, DivergenceWarning, stacklevel=3)
    return state


def _resume(loop: Loop, state: State) -> State:
    """Return the state to go on from, with what hooks that were not there before remember."""
    if (stopping := find_hook(loop.hooks, EarlyStopping)) is not None:
        stopping.best_of(state)
    adaptive = find_hook(loop.hooks, Adaptive) is not None
    if not adaptive and not is_traced(state) and (level := level_of(state)):
        raise ValueError(
            f"tune: the state comes from an adaptive run, at {2**level} times the "
            "estimator's work. Go on with Adaptive, or start anew from its hyper."
        )
    return replace(state, memory=resume_memory(loop.hooks, state))


def _variables(
    problem: Problem, hyper: PyTree, params: PyTree, state: State | None
) -> tuple[PyTree, PyTree]:
    """Return both as arrays; raise unless they are floats, inside, and like those of the state."""
    require_variables("hyper", hyper)
    require_variables("params", params)
    hyper, params = strip_weak_types(hyper), strip_weak_types(params)
    if state is None:
        problem.require_inside(hyper)
    else:
        require_same("hyper", hyper, "state.hyper", state.hyper)
        require_same("params", params, "state.start", state.start)
    return hyper, params
