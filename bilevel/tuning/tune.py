"""The second verb: descend the outer loss by its hypergradient."""

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem, as_pytree, require_arguments
from bilevel.estimators.base import Estimator, data_of_call, solver_of
from bilevel.estimators.refusals import check_losses
from bilevel.outer.coordinates import in_coordinates
from bilevel.solvers.stability import constant_stability_limit
from bilevel.tuning import early_stopping
from bilevel.tuning.adaptive import Adaptive, climb, require_adaptive
from bilevel.tuning.diagnosis import DivergenceWarning, divergence_message, step_size_warning
from bilevel.tuning.early_stopping import EarlyStopping, over
from bilevel.tuning.history import joined
from bilevel.tuning.loop import Record, block, final, proposed
from bilevel.tuning.result import Result
from bilevel.tuning.state import State, Stop, begin
from bilevel.utils import PyTree, is_traced, strong, validation

_BLOCK = 32  # outer steps per compiled call: one length, so that every run shares one program


def tune(
    problem: Problem,
    estimator: Estimator,
    outer: Any,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    *,
    steps: int,
    key: Array | None = None,
    state: State | None = None,
    warm_start: bool = True,
    limit: float = 100.0,
    record: Record | None = None,
    adaptive: bool | Adaptive = False,
    stopping: EarlyStopping | None = None,
    callback: Callable[[Result], None] | None = None,
    every: int = _BLOCK,
) -> Result:
    """Descend ``h(hyper) = outer(w*(hyper), hyper)`` with any optax transformation.

    Each step estimates value and hypergradient at ``hyper``, then updates ``hyper``, with
    ``problem.space`` in its free coordinates (the chain rule is applied here). The whole run is
    compiled. It watches the evidence: when the inner solver diverges (typically because
    ``hyper`` raised the inner curvature past 2 / step size) it stops, warns with the cause, and
    returns the last good state.

    Parameters
    ----------
    problem, estimator, data : as for :func:`bilevel.hypergradient`.
    outer : a rule of :mod:`bilevel.outer`, such as ``bl.outer.Auto()``, which needs no step size;
        an optax transformation, or :func:`bilevel.transform`, whose numbers never recompile.
    hyper, params : where to start, float pytrees; with ``state`` only their structure counts.
    steps : outer steps to do (further ones, with ``state``).
    key : a JAX random key; with ``state`` its own key is used.
    state : ``result.state`` of an earlier run, to go on from it bit for bit.
    warm_start : start each inner solve where the last one ended (``False``: at ``params``).
    limit : the run has diverged when the inner gradient is this many times its initial scale.
    record : ``(hyper, params, estimate) -> dict of arrays``, evaluated inside the compiled loop
        at every step and added to ``history``.
    adaptive : double the inner work whenever the hypergradient's signal-to-noise ratio falls below
        a target (:class:`bilevel.Adaptive` sets it); for estimators that report a standard error.
        ``history`` then has ``work``, the multiple of the estimator's own, and ``signal_to_noise``.
        Each doubling compiles once (not under ``jit`` or ``vmap``).
    stopping : :class:`bilevel.EarlyStopping`: judge every step on a second validation set, return
        the best and stop when it is past.
    callback : called with the :class:`Result` so far after every ``every`` steps (not under
        ``jit`` or ``vmap``).

    Warns
    -----
    DivergenceWarning : the inner solver diverged; ``result.message`` has the same text. Also
        before the first step, if the step size is above the stability limit there and this is
        known to hold for the whole inner solve: a constant inner Hessian, no schedule, no prox.

    Raises
    ------
    ValueError : structures that do not match, bad ``steps``, non-finite start values, a
        hyperparameter that the estimator cannot see; ``adaptive`` and no standard error.

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
    if state is None and key is None:
        raise ValueError("tune needs key=jax.random.key(seed), or the state of an earlier run.")
    require_arguments(problem, estimator, data, key if state is None else state.key)
    validation.require_positive_int("tune", "steps", steps)
    validation.require_positive_int("tune", "every", every)
    tx = in_coordinates(problem.space, as_pytree("tune", outer))
    hyper, params = _variables(problem, hyper, params, state)
    if state is not None:
        current = state
        early_stopping.require_begun(stopping, state)
    else:
        current, known = _begin(problem, estimator, tx, hyper, params, data, key)
        current = dataclasses.replace(current, best=early_stopping.begin(stopping, hyper, params))
        if known is not None and not is_traced(known) and (text := step_size_warning(*known)):
            warnings.warn(text, DivergenceWarning, stacklevel=2)
    bound = jnp.asarray(limit, current.scale.dtype)
    traced = is_traced((current, data, estimator, tx, stopping))
    growing = _growing(adaptive, estimator, current, traced)
    run = partial(
        _block, problem, tx, data, bound, stopping, warm_start=warm_start, record=record,
        adaptive=growing,
    )  # fmt: skip
    if traced:
        current, stop, history = run(estimator, current, jnp.asarray(steps), length=steps)
        return _result(tx, current, stop, history, stopping)
    step, blocks, left = partial(run, length=every), [], steps
    while True:
        before = int(current.step)
        current, stop, rows = climb(step, estimator, current, min(every, left))
        left -= int(current.step) - before
        blocks.append(rows)
        if left and callback is None and not (stop.diverged or over(stopping, current)):
            continue
        blocks = [joined(blocks)]
        result = _result(tx, current, stop, jax.tree.map(jnp.asarray, blocks[0]), stopping)
        if result.stopped or stop.diverged:
            result = _explained(problem, estimator, tx, result, stop, data, stopping)
        if callback is not None:
            callback(result)
        if left == 0 or result.message is not None:
            return result


def _variables(
    problem: Problem, hyper: PyTree, params: PyTree, state: State | None
) -> tuple[PyTree, PyTree]:
    """Both as arrays; raises unless they are floats, inside, and like those of the state."""
    validation.require_variables("hyper", hyper)
    validation.require_variables("params", params)
    hyper, params = strong(hyper), strong(params)
    if state is None:
        problem.require_inside(hyper)
    else:
        validation.require_same("hyper", hyper, "state.hyper", state.hyper)
        validation.require_same("params", params, "state.start", state.start)
    return hyper, params


def _growing(adaptive: Any, estimator: Any, state: State, traced: bool) -> Adaptive | None:
    """The rule by which inner work grows, ``None`` for none; or a refusal."""
    if adaptive is False:
        if not traced and int(state.work.level):
            raise ValueError(
                f"tune: the state comes from an adaptive run, at {int(state.work.times)} times the "
                "estimator's work. Go on with adaptive=True, or start anew from its hyper."
            )
        return None
    if traced:
        raise ValueError(
            "tune: adaptive=True chooses between compiled programs by what it sees, so it cannot "
            "run under jit or vmap. Call it outside, or fix the work."
        )
    if not isinstance(adaptive, bool | Adaptive):
        raise TypeError(f"tune: adaptive must be a boolean or bl.Adaptive(...), got {adaptive!r}.")
    require_adaptive(estimator, state.estimate.evidence.standard_error)
    return adaptive if isinstance(adaptive, Adaptive) else Adaptive()


def _result(
    tx: Any, state: State, stop: Stop, history: dict[str, Array], stopping: EarlyStopping | None
) -> Result:
    if stopping is not None and state.best is not None:
        hyper, params = state.best.hyper, state.best.params
        stopped = over(stopping, state)
    else:
        hyper, params, stopped = _final(tx, state, stop.diverged), state.lower.params, None
    return Result(hyper, params, history, state.estimate, state, stop.diverged, stopped)


def _explained(
    problem: Problem, estimator: Estimator, tx: Any, result: Result, stop: Stop, data: Data,
    stopping: Any,
) -> Result:  # fmt: skip
    """With the message that says why the run ended."""
    state = result.state
    if not stop.diverged:
        return dataclasses.replace(result, message=early_stopping.say(stopping, state))
    text = divergence_message(problem, estimator, state, _proposed(tx, state), stop, data)
    warnings.warn(text, DivergenceWarning, stacklevel=3)
    return dataclasses.replace(result, message=text)


_final, _proposed = jax.jit(final), jax.jit(proposed)


@partial(jax.jit, static_argnames="problem")
def _begin(
    problem: Problem,
    estimator: Estimator,
    tx: Any,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
) -> tuple[State, tuple[Array, Array] | None]:
    check_losses(problem, hyper, params, data_of_call(estimator, data, key))
    state = begin(problem, estimator, tx, hyper, params, data, key)
    solver = solver_of(estimator, problem, hyper, params, data)
    return state, constant_stability_limit(problem, solver, hyper, state.lower, data, key)


@partial(jax.jit, static_argnames=("problem", "length", "warm_start", "record"))
def _block(
    problem: Problem,
    tx: Any,
    data: Data,
    limit: Array,
    stopping: EarlyStopping | None,
    estimator: Estimator,
    state: State,
    count: Array,
    *,
    length: int,
    warm_start: bool,
    record: Record | None,
    adaptive: Adaptive | None,
) -> tuple[State, Stop, dict[str, Array]]:
    return block(
        problem, estimator, tx, data, state, count,
        length=length, warm_start=warm_start, limit=limit, record=record, adaptive=adaptive,
        stopping=stopping,
    )  # fmt: skip
