"""What the stochastic estimators with an adjoint share: settings, and what is measured."""

from typing import Protocol

import jax
import jax.numpy as jnp

from bilevel.core import Counts, Data, InnerState, Problem
from bilevel.single_loop.batches import BatchSize, Minibatches
from bilevel.single_loop.monitor import Monitor
from bilevel.single_loop.oracles import Series
from bilevel.single_loop.rates import Rate, Rates, as_rate
from bilevel.single_loop.rules import DirectionRule
from bilevel.utils import PyTree, require_positive_int


class HasSettings(Protocol):
    """An estimator with these settings, read-only."""

    @property
    def step_size(self) -> Rate:
        """The rate of the params."""
        ...

    @property
    def adjoint_step(self) -> Rate | None:
        """The rate of the adjoint; ``None``: the same."""
        ...

    @property
    def batch_size(self) -> BatchSize:
        """The examples per minibatch, of both levels or of each."""
        ...


def normalise_settings(estimator: HasSettings, counts: tuple[str, ...]) -> None:
    """Normalise ``step_size, adjoint_step, batch_size``; ``counts`` are positive or ``None``."""
    name = type(estimator).__name__
    rate = as_rate(name, "step_size", estimator.step_size)
    object.__setattr__(estimator, "step_size", rate)
    if estimator.adjoint_step is not None:
        rate = as_rate(name, "adjoint_step", estimator.adjoint_step)
        object.__setattr__(estimator, "adjoint_step", rate)
    size = estimator.batch_size
    if isinstance(size, list | tuple):
        if len(size) != 2:
            raise ValueError(
                f"{name}: batch_size must be a number, None or a pair (inner, outer), got {size!r}."
            )
        object.__setattr__(estimator, "batch_size", tuple(size))
    for field in counts:
        if (count := getattr(estimator, field)) is not None:
            require_positive_int(name, field, count)


def monitor_adjoint(batches: Minibatches, every: int | None, updates: int = 1) -> Monitor:
    """Monitor params and adjoint; a measurement costs one product with all inner data."""
    cost = Counts.of(gradients=1, hvps=1)
    return Monitor(measure_adjoint, batches.per_pass, cost, every, updates)


def named_steps(rates: Rates, adjoint: DirectionRule | Series) -> dict[str, Rate]:
    """Name the steps of params and adjoint; a series has one of its own."""
    v = adjoint.step_size if isinstance(adjoint, Series) else rates.v
    return {"w (params)": rates.w, "v (adjoint)": v}


def measure_adjoint(
    problem: Problem, hyper: PyTree, after: InnerState, data: Data
) -> tuple[PyTree, PyTree, PyTree]:
    """Return the inner gradient, the residual of the adjoint's system and its right-hand side."""

    def gradient(w: PyTree) -> PyTree:
        return jax.grad(problem.inner)(w, hyper, data.inner)

    inner, product = jax.jvp(gradient, (after.params,), (after.memory["v"],))
    rhs = jax.grad(problem.outer)(after.params, hyper, data.outer)
    return inner, jax.tree.map(jnp.add, product, rhs), rhs
