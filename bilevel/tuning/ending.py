"""What a run ends with."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.outer import TracksBest, find_capability
from bilevel.tuning.convergence import Convergence
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.hooks import find_hook, init_memory, is_done
from bilevel.tuning.loop import Block, Loop
from bilevel.tuning.state import Columns, Result, State, Stop
from bilevel.utils import PyTree

_final = jax.jit(Loop.final)


def make_result(loop: Loop, state: State, stop: Stop, history: Columns) -> Result:
    """Return what a run that ends with this state has found."""
    others = tuple(hook for hook in loop.hooks if not isinstance(hook, Convergence))
    stopped = is_done(others, state, state) if others else None
    converged = jnp.array(False)
    if (convergence := find_hook(loop.hooks, Convergence)) is not None:
        converged = convergence.has_converged(state)
    if (stopping := find_hook(loop.hooks, EarlyStopping)) is not None:
        best = stopping.best_of(state)
        hyper, params = best.hyper, best.params
    else:
        hyper, params = _final(loop, state, stop.diverged), state.lower.params
    end = {"stopped": stopped, "converged": converged}
    return Result(hyper, params, history, state.estimate, state, stop.diverged, **end)


_FEWEST = 10  # steps of a run that is worth the comparison
_ESTIMATES = 4  # for each point; the first of them brings the inner solver there
_EXACT = 1e-5  # an inner residual that no record gains by
_FIRST_KEY = 1 << 30  # beyond the keys of all steps


def compare_points(loop: Loop, result: Result, run: Callable[..., Block], length: int) -> Result:
    """Return the result with the better of two points, compared at equal accuracy.

    A record may be lucky: its inner problem less converged, its minibatches kind. So the best on
    record and the last point are estimated a few times more, from the same params and with the
    same keys, and the lower mean wins. ``run`` is the compiled block of the run, of this length.
    """
    evidence, state = result.estimate.evidence, result.state
    residual = evidence.inner_residual
    exact = evidence.standard_error is None and (residual is None or float(residual) < _EXACT)
    rule, watched = find_capability(loop.outer, TracksBest), find_hook(loop.hooks, EarlyStopping)
    few = len(result.history["value"]) < _FEWEST
    if rule is None or watched is not None or exact or few or _agree(result.hyper, state.hyper):
        return result
    points = (result.hyper, state.hyper)
    alone = partial(run, loop, count=jnp.asarray(1), length=length)
    best, last = (estimate_again(loop, state, hyper, alone) for hyper in points)
    return replace(result, hyper=points[1]) if last < best else result


def estimate_again(loop: Loop, state: State, hyper: PyTree, run: Callable[[State], Block]) -> float:
    """Return the mean value of a few more estimates at ``hyper``, infinite if it is not finite."""
    memory, values = init_memory(loop.hooks, hyper, state.lower.params), []
    at = replace(state, hyper=hyper, memory=memory)
    for number in range(_ESTIMATES):
        key = jax.random.fold_in(state.key, _FIRST_KEY + number)
        at, stop, row = run(replace(at, step=jnp.zeros_like(at.step), memory=memory, key=key))
        if stop.diverged:
            return np.inf
        values.append(float(row["value"][0]))
    mean = float(np.mean(values[1:]))
    return mean if np.isfinite(mean) else np.inf


def _agree(a: PyTree, b: PyTree) -> bool:
    """Return whether two points are the same to the eye of any value."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-3, atol=0) for x, y in pairs)
