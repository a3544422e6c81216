"""What a run ends with."""

import jax
import jax.numpy as jnp

from bilevel.tuning.convergence import Convergence
from bilevel.tuning.early_stopping import EarlyStopping
from bilevel.tuning.hooks import find_hook, is_done
from bilevel.tuning.loop import Loop
from bilevel.tuning.state import Columns, Result, State, Stop

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
