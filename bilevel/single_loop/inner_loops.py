"""The inner loops of ``DoubleLoop``: a few steps on the params, then on the adjoint."""

from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem, rebind_key
from bilevel.single_loop.batches import Batches
from bilevel.single_loop.oracles import Series, Variables, hessian_product
from bilevel.single_loop.rates import Rate, move_along
from bilevel.utils import PyTree, zeros_like

VariableCarry: TypeAlias = tuple[
    PyTree, PyTree, PyTree
]  # a variable, its rate's state, the sampler's
Moved: TypeAlias = tuple[PyTree, PyTree, PyTree, PyTree]  # the same, and the last direction


class InnerLoop(NamedTuple):
    """A loop of ``steps`` moves; the k-th minibatch is drawn with ``fold_in(key, k)``."""

    problem: Problem
    batches: Batches
    rate: Rate
    data: Data
    steps: int
    key: Array


def descend_params(loop: InnerLoop, hyper: PyTree, carry: VariableCarry, count: Array) -> Moved:
    """Move the params along minibatch gradients."""
    problem, batches, rate, data, steps, key = loop
    w, w_state, sampler = carry
    drawn, sampler = batches.ahead(data.inner, partial(jax.random.fold_in, key), sampler, steps)

    def advance(carry: VariableCarry, k: Array) -> tuple[VariableCarry, None]:
        w, w_state, _ = carry
        at = rebind_key(problem, jax.random.fold_in(key, k))
        gradient = partial(jax.grad(at.inner), w, hyper)
        direction = batches.mean(gradient, data.inner, drawn(k))
        w, w_state = move_along(rate, w, direction, count, hyper, w_state)
        return (w, w_state, direction), None

    begun = (w, w_state, zeros_like(w))
    (w, w_state, direction), _ = jax.lax.scan(advance, begun, jnp.arange(steps))
    return w, w_state, sampler, direction


def descend_adjoint(
    loop: InnerLoop, here: Variables, rhs: PyTree, carry: VariableCarry, count: Array
) -> Moved:
    """Move the adjoint along minibatch residuals of its system, at fixed params."""
    problem, batches, rate, data, steps, key = loop
    v, v_state, sampler = carry
    drawn, sampler = batches.ahead(data.inner, partial(jax.random.fold_in, key), sampler, steps)

    def advance(carry: VariableCarry, k: Array) -> tuple[VariableCarry, None]:
        v, v_state, _ = carry
        at = rebind_key(problem, jax.random.fold_in(key, k))
        hvp = partial(hessian_product, at, here.w, here.lam, v)
        direction = jax.tree.map(jnp.add, batches.mean(hvp, data.inner, drawn(k)), rhs)
        v, v_state = move_along(rate, v, direction, count, here.lam, v_state)
        return (v, v_state, direction), None

    begun = (v, v_state, zeros_like(v))
    (v, v_state, direction), _ = jax.lax.scan(advance, begun, jnp.arange(steps))
    return v, v_state, sampler, direction


def sum_series(
    series: Series, loop: InnerLoop, here: Variables, rhs: PyTree, carry: VariableCarry
) -> tuple[PyTree, PyTree, PyTree, PyTree, Array]:
    """Form the adjoint afresh by a series; the number of products comes last."""
    problem, batches, _, data, _, key = loop
    drawn, sampler = batches.series(data.inner, key, carry[2], series.steps)

    def product(i: Array, x: PyTree) -> PyTree:
        hvp = partial(hessian_product, problem, here.w, here.lam, x)
        return batches.mean(hvp, data.inner, drawn(i))

    v, products = series.solve(product, rhs, key)
    return v, carry[1], sampler, v, products
