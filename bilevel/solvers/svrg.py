r"""SVRG: minibatch steps whose noise vanishes at the solution, with a snapshot's full gradient.

    w <- w - eta [g_b(w) - g_b(s) + G(s)],   s <- w, G <- full gradient at w, once per period

Johnson, Zhang, NeurIPS 2013; with a prox: Xiao, Zhang, SIAM J. Optimization 2014. ``s`` and ``G``
are part of the state, so that an estimator carries their derivatives too:

    D <- D - eta [H_b(w) D + C_b(w) - H_b(s) D_s - C_b(s) + D_G]

is the variance-reduced form of the derivative of SGD: its noise vanishes as well, and ``D`` tends
geometrically to the derivative of the minimiser, where that of SGD keeps a floor of O(eta).
"""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp

from bilevel.core import Loss, Problem, count_examples
from bilevel.solvers.sampling import Sampler, SamplerState
from bilevel.solvers.steps import (
    SolverStepSize,
    StepCount,
    advance_count,
    apply_prox,
    as_step_size,
    evaluate_step_size,
    init_count,
    measure_limit,
    restart_count,
)
from bilevel.utils import (
    Counter,
    DataTree,
    Hyper,
    Key,
    Params,
    Scalar,
    axpy,
    register_node,
    require_positive_int,
    zeros_like,
)

# StepCount, age of the snapshot, snapshot, its full gradient, sampler.
SVRGState: TypeAlias = tuple[StepCount, Counter, Params, Params, SamplerState]


@dataclass(frozen=True)
class SVRG:
    r"""Stochastic variance-reduced gradient; applies ``Problem.prox`` where there is one.

    A step costs two minibatch gradients, and every ``period`` steps one full gradient. Memory: two
    trees like ``params`` (under ``Forward``, so many more tangents). Each estimator call begins
    with a new snapshot, because the old full gradient belongs to the ``hyper`` of the last call.
    Under ``vmap`` over its state (``Replicated``) every step computes a full gradient.

    Parameters
    ----------
    step_size : a positive number, :class:`bilevel.Relative`, ``fn(count)`` or ``fn(count,
        hyper)``; about 1 / (4 L), with L the largest curvature of the loss on one example (on one
        minibatch, for large ones).
    batch_size : examples per step, at most n; ``None`` is the full batch.
    period : steps between snapshots; ``None`` is two passes, ``2 n / batch_size`` rounded up.
    sampling : ``"iid"`` (with replacement), ``"without_replacement"`` (different examples in every
        batch) or ``"epoch"`` (random permutations).

    Raises
    ------
    ValueError : a step size that is not positive, ``period`` below 1, an unknown sampling.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.SVRG(step_size=0.1, batch_size=8).period is None
    True
    """

    step_size: SolverStepSize
    batch_size: int | None = 1
    period: int | None = None
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_step_size("SVRG", self.step_size))
        if self.period is not None:
            require_positive_int("SVRG", "period", self.period)
        Sampler(self.batch_size, self.sampling)

    def check(self, problem: Problem) -> None:
        """Accept every problem, with and without a proximal part."""

    def init(self, params: Params, data: DataTree) -> SVRGState:
        """Return ``(count, age of the snapshot, snapshot, its full gradient, sampler state)``."""
        count, age = init_count(self.step_size, params), jnp.zeros((), jnp.int32)
        sampler = Sampler(self.batch_size, self.sampling).init(data)
        return count, age, params, zeros_like(params), sampler

    def refresh(self, state: SVRGState) -> SVRGState:
        """Return the same state, its snapshot due."""
        count, age, snapshot, full, sampler = state
        count = restart_count(count, self.step_size)
        return count, jnp.zeros_like(age), snapshot, full, sampler

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: SVRGState
    ) -> SVRGState:
        """Return the state with the limit of a relative step size, 1/3 of that of SGD."""
        count, age, snapshot, full, sampler = state
        count = measure_limit(
            count, loss, params, hyper, data, batch_size=self.batch_size, scale=1 / 3
        )
        return count, age, snapshot, full, sampler

    def drawn(self, data: DataTree, key: Key, state: SVRGState) -> DataTree:
        """Return the minibatch that ``step`` with this key and state sees."""
        return Sampler(self.batch_size, self.sampling).draw(data, key, state[4])[0]

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: SVRGState
    ) -> tuple[Params, SVRGState]:
        """Renew the snapshot if it is due, draw a batch, move along the corrected gradient."""
        count, age, snapshot, full, sampler = state
        gradient = jax.grad(loss)

        def renew(
            params: Params, hyper: Hyper, snapshot: Params, full: Params
        ) -> tuple[Params, Params]:
            return jax.lax.cond(
                age == 0, lambda: (params, gradient(params, hyper, data)), lambda: (snapshot, full)
            )

        # Without the checkpoint, reverse mode would store a copy of all data at every step.
        renew = jax.checkpoint(renew, prevent_cse=False)
        snapshot, full = renew(params, hyper, snapshot, full)
        batch, sampler = Sampler(self.batch_size, self.sampling).draw(data, key, sampler)
        here, there = gradient(params, hyper, batch), gradient(snapshot, hyper, batch)
        direction = jax.tree.map(lambda g, s, f: g - s + f, here, there, full)
        size = evaluate_step_size(self.step_size, count, hyper)
        params = apply_prox(loss, axpy(-size, direction, params), hyper, size)
        age = (age + 1) % self._period(data)
        return params, (advance_count(count), age, snapshot, full, sampler)

    def _period(self, data: DataTree) -> int:
        n = count_examples(data)
        return -(-2 * n // (self.batch_size or n)) if self.period is None else self.period

    def max_curvature(self, hyper: Hyper, state: SVRGState) -> Scalar:
        """Return ``2 / step_size``."""
        return 2 / evaluate_step_size(self.step_size, state[0], hyper)


register_node(SVRG, data_fields=["step_size"], meta_fields=["batch_size", "period", "sampling"])
