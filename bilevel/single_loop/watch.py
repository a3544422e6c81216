"""Whether a run is going astray, and in which variable: cheap every step, exact when it matters.

Norms of the directions are compared with their largest values in the first steps. Where one has
grown tenfold, at calls 1, 2, 4, 8, ... and every so many calls, the inner gradient and the residual
of the adjoint are measured on all data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.estimate import Estimate, Lower
from bilevel.estimators.base import inner_residual
from bilevel.lazily import only_if
from bilevel.problem import Data, Problem
from bilevel.single_loop.oracles import Point
from bilevel.trees import PyTree, all_finite, norm

_SETTLE = 4  # steps in which the scales are learned
_SUSPECT = 10  # growth that is looked into
_FOLLOW = 1.05  # growth per step of D_lambda and of the value that is never taken for divergence


class Watch(NamedTuple):
    """What was measured last, ``[4]``, and the scales of the first steps, ``[4]``, with growth.

    Vectors rather than numbers: a small step costs XLA as much as it has separate numbers.

    ``measured``: the two residuals; ``rhs``, the largest ``|grad_w f|`` seen; the adjoint's
    residual over that. ``scale``: of ``|D_w|, |D_v|, |D_lambda|`` and of the outer value.
    ``growth``, ``()``: the smaller of the growth of ``|D_lambda|`` and of the outer value.
    """

    measured: Array
    scale: Array
    growth: Array

    @classmethod
    def zeros(cls, dtype: Any) -> "Watch":
        """Before the first step."""
        return cls(jnp.zeros(4, dtype), jnp.zeros(4, dtype), jnp.zeros((), dtype))

    @property
    def residual(self) -> Array:
        """That of the params."""
        return self.measured[0]

    @property
    def linear(self) -> Array:
        """That of the adjoint's system."""
        return self.measured[1]

    @property
    def adjoint(self) -> Array:
        """The adjoint's residual over the largest right-hand side."""
        return self.measured[3]


def observe(
    problem: Problem,
    watch: Watch,
    lower: Lower,
    end: Point,
    directions: Point,
    value: Array,
    data: Data,
    calls: Array,
    every: int,
) -> tuple[Watch, Array, Array]:
    """``(watch, reference, measured)`` after a call that moved ``lower`` to ``end``."""
    dtype, old = watch.scale.dtype, watch.scale
    seen = jnp.stack([*(norm(x).astype(dtype) for x in directions), jnp.abs(value).astype(dtype)])
    settling = calls < _SETTLE
    growth = jnp.min(_ratio(seen, old)[2:])
    suspect = jnp.any((seen > _SUSPECT * old)[:2]) & ~settling
    # D_w and D_v: the largest, learned at first and when suspect; the others may grow a little
    most = jnp.where(settling | (old == 0), seen, jnp.minimum(seen, _FOLLOW * old))
    largest = jnp.where(settling | suspect, seen, old)
    scale = jnp.maximum(old, jnp.where(jnp.arange(4) < 2, largest, most))

    def measure() -> tuple[Array, Array]:
        def gradient(w: PyTree) -> PyTree:
            return jax.grad(problem.inner)(w, end.lam, data.inner)

        inner, product = jax.jvp(gradient, (end.w,), (end.v,))
        rhs = jax.grad(problem.outer)(end.w, end.lam, data.outer)
        left = norm(jax.tree.map(jnp.add, product, rhs)).astype(dtype)
        b = norm(rhs).astype(dtype)
        residual, reference = inner_residual(
            problem, end.lam, lower.params, inner, data, lower.reference
        )
        most = jnp.maximum(watch.measured[2], b)
        relative = jnp.where(most > 0, left / most, 0)
        return jnp.stack([residual.astype(dtype), _ratio(left, b), most, relative]), reference

    due = suspect | (calls % every == 0) | (calls & (calls - 1) == 0)
    measured, reference = only_if(due, measure, (watch.measured, lower.reference))
    return Watch(measured, scale, jnp.where(settling, 0, growth)), reference, due


def _ratio(size: Array, scale: Array) -> Array:
    return jnp.where(size == 0, 0, size / scale)


def astray(watch: Watch, v: PyTree, estimate: Estimate, after: Lower, limit: Any) -> dict:
    """The variables, and whether each has left all bounds; of several the first is named.

    ``w`` counts as lost here only when it is not finite: :func:`bilevel.tune` judges it by the
    inner residual.
    """
    w_lost = ~all_finite(after.params)
    v_lost = ~all_finite(v) | (watch.adjoint > limit)
    lam_lost = ~all_finite((estimate.grad, estimate.value)) | (watch.growth > limit)
    return {
        "w (params)": w_lost,
        "v (adjoint)": ~w_lost & v_lost,
        "lambda (hyper)": ~w_lost & ~v_lost & lam_lost,
    }
