"""What a run ends with."""

import jax

from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.hooks import Columns, find_hook, is_done
from bilevel.tuning.loop import Loop
from bilevel.tuning.state import Result, State, Stop

_final = jax.jit(Loop.final)


def make_result(loop: Loop, state: State, stop: Stop, history: Columns) -> Result:
    """Return what a run that ends with this state has found."""
    stopped = is_done(loop.hooks, state, state) if loop.hooks else None
    if (stopping := find_hook(loop.hooks, EarlyStopping)) is not None:
        best = stopping.best_of(state)
        hyper, params = best.hyper, best.params
    else:
        hyper, params = _final(loop, state, stop.diverged), state.lower.params
    return Result(hyper, params, history, state.estimate, state, stop.diverged, stopped)
