"""What the stochastic estimators share: minibatches of both levels, and steps."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    InnerState,
    Problem,
    StaticTransform,
    Transform,
    evaluate,
    init_inner_state,
)
from bilevel.single_loop.batches import Batches
from bilevel.single_loop.monitored import Watched, often
from bilevel.single_loop.rates import as_rate, begin_rate
from bilevel.utils import PyTree, validation


class Stochastic(Watched):
    """Fields ``step_size, adjoint_step, batch_size, sampling, check_every`` and their meaning."""

    step_size: Any
    v: Any
    adjoint_step: Any
    batch_size: Any
    sampling: str
    check_every: int | None
    positive: ClassVar[tuple[str, ...]] = ("check_every",)  # fields that are positive or None

    def _normalise(self) -> None:
        name = type(self).__name__
        object.__setattr__(self, "step_size", as_rate(name, "step_size", self.step_size))
        if self.adjoint_step is not None:
            rate = as_rate(name, "adjoint_step", self.adjoint_step)
            object.__setattr__(self, "adjoint_step", rate)
        if isinstance(self.batch_size, list | tuple):
            if len(self.batch_size) != 2:
                raise ValueError(
                    f"{name}: batch_size must be a number, None or a pair (inner, outer), got "
                    f"{self.batch_size!r}."
                )
            object.__setattr__(self, "batch_size", tuple(self.batch_size))
        for field in self.positive:
            if (count := getattr(self, field)) is not None:
                validation.require_positive_int(name, field, count)
        self._levels()

    def _blocks(self) -> bool:
        return False

    def _levels(self) -> tuple[Batches, Batches]:
        sizes = self.batch_size if isinstance(self.batch_size, tuple) else (self.batch_size,) * 2
        inner, outer = (Batches(size, self.sampling, self._blocks()) for size in sizes)
        return inner, outer

    def _counts(self, data: Data) -> tuple[int, int]:
        """Minibatches per pass of both levels."""
        inner, outer = self._levels()
        return inner.count(data.inner), outer.count(data.outer)

    def _rates(self) -> tuple[Any, Any]:
        return self.step_size, self.step_size if self.adjoint_step is None else self.adjoint_step

    def _every(self, data: Data) -> int:
        return self.check_every or often(self._counts(data))

    def init(self, params: PyTree, data: Data) -> InnerState:
        """Start point, samplers, states of the two steps; all else begins at zero."""
        inner, outer = self._levels()
        inner.check("inner", data.inner)
        outer.check("outer", data.outer)
        rates = tuple(begin_rate(rate, params) for rate in self._rates())
        return init_inner_state(params, (inner.init(data.inner), outer.init(data.outer), rates))

    def _passes(self, data: Data) -> Counts:
        passes = self._counts(data)[0]
        return Counts.of(gradients=passes, hvps=passes)

    def _measure(
        self, problem: Problem, hyper: PyTree, after: InnerState, data: Data
    ) -> tuple[PyTree, PyTree, PyTree]:
        """The residual of the adjoint's system against its right-hand side."""

        def gradient(w: PyTree) -> PyTree:
            return jax.grad(problem.inner)(w, hyper, data.inner)

        inner, product = jax.jvp(gradient, (after.params,), (after.memory["v"],))
        rhs = jax.grad(problem.outer)(after.params, hyper, data.outer)
        return inner, jax.tree.map(jnp.add, product, rhs), rhs

    def stability_limits(self, hyper: PyTree, lower: InnerState) -> dict[str, Array]:
        """``2 / step`` for params and adjoint; nothing for an optax transformation."""
        w, v = self._rates()
        steps = {"w (params)": w, "v (adjoint)": getattr(self.v, "step_size", v)}
        count = lower.memory["count"]
        return {
            name: 2 / evaluate(step, count, hyper)
            for name, step in steps.items()
            if not isinstance(step, StaticTransform | Transform)
        }
