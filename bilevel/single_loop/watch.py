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
    """Residuals as last measured, the scales of the first steps, and growth; each ``()``.

    ``rhs`` is the largest ``|grad_w f|`` measured, ``adjoint`` the adjoint's residual over it,
    ``growth`` the smaller of the growth of ``|D_lambda|`` and of the outer value.
    """

    residual: Array
    linear: Array
    rhs: Array
    adjoint: Array
    growth: Array
    w: Array
    v: Array
    lam: Array
    value: Array

    @classmethod
    def zeros(cls, dtype: Any) -> "Watch":
        """Before the first step."""
        return cls(*(jnp.zeros((), dtype) for _ in cls._fields))


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
    dtype = watch.residual.dtype
    sizes = Point(*(norm(x).astype(dtype) for x in directions))
    size = jnp.abs(value).astype(dtype)
    settling = calls < _SETTLE
    growth = jnp.minimum(_ratio(sizes.lam, watch.lam), _ratio(size, watch.value))
    suspect = (sizes.w > _SUSPECT * watch.w) | (sizes.v > _SUSPECT * watch.v)
    suspect = suspect & ~settling
    learn = settling | suspect

    def raised(scale: Array, seen: Array, when: Array) -> Array:
        return jnp.where(when, jnp.maximum(scale, seen), scale)

    def followed(scale: Array, seen: Array) -> Array:
        most = jnp.where(settling | (scale == 0), seen, jnp.minimum(seen, _FOLLOW * scale))
        return jnp.maximum(scale, most)

    watch = watch._replace(
        growth=jnp.where(settling, 0, growth),
        w=raised(watch.w, sizes.w, learn),
        v=raised(watch.v, sizes.v, learn),
        lam=followed(watch.lam, sizes.lam),
        value=followed(watch.value, size),
    )

    def measure() -> tuple[Watch, Array]:
        def gradient(w: PyTree) -> PyTree:
            return jax.grad(problem.inner)(w, end.lam, data.inner)

        inner, product = jax.jvp(gradient, (end.w,), (end.v,))
        rhs = jax.grad(problem.outer)(end.w, end.lam, data.outer)
        left = norm(jax.tree.map(jnp.add, product, rhs)).astype(dtype)
        b = norm(rhs).astype(dtype)
        residual, reference = inner_residual(
            problem, end.lam, lower.params, inner, data, lower.reference
        )
        most = jnp.maximum(watch.rhs, b)
        new = watch._replace(
            residual=residual.astype(dtype),
            linear=_ratio(left, b),
            rhs=most,
            adjoint=jnp.where(most > 0, left / most, 0),
        )
        return new, reference

    measured = suspect | (calls % every == 0) | (calls & (calls - 1) == 0)
    watch, reference = only_if(measured, measure, (watch, lower.reference))
    return watch, reference, measured


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
