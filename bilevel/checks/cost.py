"""What an estimate will cost, before it is run: memory, seconds, compile time.

Memory is what XLA planned for the compiled program, the loops at their full length. Seconds come
from two short runs of the same estimator, extrapolated in its number of steps.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from bilevel.core import ChoosesEstimator, Data, Estimate, Estimator, InnerState, Problem
from bilevel.estimators import compiled_step, hypergradient, innermost_estimator
from bilevel.utils import PyTree, map_fields

_LENGTHS = ("steps", "start", "average", "truncate", "last")  # fields that count solver steps


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one :func:`bilevel.hypergradient` call.

    Parameters
    ----------
    temp_bytes : scratch memory that XLA allocates during the call, the figure that grows with the
        number of steps in reverse mode and with ``params x hyper`` in forward mode.
    state_bytes : memory of the arguments and results (data, params, carried state).
    seconds : of one warm call.
    compile_seconds : of the first call.
    extrapolated : whether ``seconds`` comes from shorter runs (else from one full call).
    """

    temp_bytes: int
    state_bytes: int
    seconds: float
    compile_seconds: float
    extrapolated: bool

    def __str__(self) -> str:
        """Return one line for people."""
        scratch, state = self.temp_bytes / 2**20, self.state_bytes / 2**20
        return (
            f"{scratch:.1f} MiB scratch + {state:.1f} MiB state, "
            f"{self.seconds:.3g} s a call after {self.compile_seconds:.2g} s of compilation"
        )


def estimate_cost(
    problem: Problem,
    estimator: Estimator,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
) -> Cost:
    """Memory, time and compile time of one hypergradient, before it runs at full length.

    Parameters are those of :func:`bilevel.hypergradient`, whose errors it raises.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(lambda w, h, x: jnp.mean((w - x) ** 2) + h * w**2, lambda w, h, x: w)
    >>> data = bl.Data(inner=jnp.ones(50), outer=jnp.ones(1))
    >>> estimator = bl.Reverse(bl.SGD(step_size=0.1, batch_size=5), steps=1000)
    >>> cost = bl.estimate_cost(
    ...     problem, estimator, jnp.array(0.1), jnp.array(0.0), data, jax.random.key(0)
    ... )
    >>> cost.temp_bytes < 2**20
    True
    """
    begun = time.perf_counter()
    compiled, _ = compiled_step(problem, estimator, hyper, params, data, key)
    spent = time.perf_counter() - begun
    seconds, extrapolated = _seconds(problem, estimator, (hyper, params, data, key))
    return Cost(*_bytes(compiled), seconds, spent, extrapolated)


def measure_cost(
    problem: Problem,
    estimator: Estimator,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
) -> tuple[Estimate, InnerState, Cost]:
    """Return one hypergradient from a cold start, where it ended, and what it did cost."""
    begun = time.perf_counter()
    compiled, call = compiled_step(problem, estimator, hyper, params, data, key)
    spent = time.perf_counter() - begun
    jax.block_until_ready(call())
    begun = time.perf_counter()
    estimate, after = jax.block_until_ready(call())
    return estimate, after, Cost(*_bytes(compiled), time.perf_counter() - begun, spent, False)


def _bytes(compiled: Any) -> tuple[int, int]:
    memory = compiled.memory_analysis()
    state = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return memory.temp_size_in_bytes, state


def _seconds(problem: Problem, estimator: Estimator, args: tuple) -> tuple[float, bool]:
    steps = _steps(estimator)
    if steps is None or steps < 64:
        return _clock(problem, estimator, args), False
    short, twice = 1 / 16, 1 / 8
    first = _clock(problem, _shortened(estimator, short), args)
    second = _clock(problem, _shortened(estimator, twice), args)
    return max(first + (second - first) / (twice - short) * (1 - short), second), True


def _clock(problem: Problem, estimator: Estimator, args: tuple, repeats: int = 3) -> float:
    """Best of a few warm calls, in seconds."""
    _, state = hypergradient(problem, estimator, *args, max_error=math.inf)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        out = hypergradient(problem, estimator, *args, max_error=math.inf, state=state)
        jax.block_until_ready(out)
        times.append(time.perf_counter() - begun)
    return min(times)


def _steps(estimator: Estimator) -> int | None:
    """Return the number of solver steps of the innermost estimator; ``None``: not known."""
    inside = innermost_estimator(estimator)
    if isinstance(inside, ChoosesEstimator):
        return None  # which may not run any of its steps
    return getattr(inside, "steps", None)


def _shortened(estimator: Estimator, factor: float) -> Estimator:
    """Return the estimator with every count of solver steps times ``factor``, at least one."""

    def shorten(count: int) -> int:
        return max(int(count * factor), 1) if count else count

    return map_fields(estimator, _LENGTHS, shorten)
