r"""The directions of the three variables at one point.

    D_w = grad_w g,   D_v = H v + grad_w f,   D_lambda = C^T v + grad_lambda f,
    H = d^2 g / dw^2,   C = d^2 g / dw dlambda;   g inner, f outer loss;   v -> -H^{-1} grad_w f

Everything that involves g comes from one forward-over-reverse product, of about the cost of a
Hessian-vector product alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Problem
from bilevel.utils import PyTree, axpy, register_node, require_positive, require_positive_int

Mean = Callable[[Callable[[PyTree], PyTree]], PyTree]  # fn(batch) -> its mean over a minibatch


Product = Callable[[Array, PyTree], PyTree]  # (i, x) -> H_i x, of the i-th minibatch


class Variables(NamedTuple):
    """The three variables: inner, adjoint, hyperparameters."""

    w: PyTree
    v: PyTree
    lam: PyTree


class DirectionParts(NamedTuple):
    """Each direction as a tuple of its inner-loss and outer-loss parts."""

    w: tuple
    v: tuple
    lam: tuple


class PointEvaluation(NamedTuple):
    """All directions at one point, on one pair of minibatches."""

    parts: DirectionParts
    value: Array
    v: PyTree
    products: Array


def inner_directions(problem: Problem, w: PyTree, v: PyTree, lam: PyTree, batch: PyTree) -> tuple:
    """Return ``(grad_w g, H v, C^T v)``."""

    def gradients(w: PyTree) -> tuple[PyTree, PyTree]:
        return jax.grad(problem.inner, argnums=(0, 1))(w, lam, batch)

    (gradient, _), (product, cross) = jax.jvp(gradients, (w,), (v,))
    return gradient, product, cross


def hessian_product(problem: Problem, w: PyTree, lam: PyTree, x: PyTree, batch: PyTree) -> PyTree:
    """Return ``H x``."""
    return jax.jvp(lambda w: jax.grad(problem.inner)(w, lam, batch), (w,), (x,))[1]


def cross_product(problem: Problem, w: PyTree, v: PyTree, lam: PyTree, batch: PyTree) -> PyTree:
    """Return ``C^T v``."""
    return jax.jvp(lambda w: jax.grad(problem.inner, argnums=1)(w, lam, batch), (w,), (v,))[1]


def outer_directions(problem: Problem, w: PyTree, lam: PyTree, batch: PyTree) -> tuple:
    """Return ``(f, (grad_w f, grad_lambda f))``."""
    return jax.value_and_grad(problem.outer, argnums=(0, 1))(w, lam, batch)


@dataclass(frozen=True)
class HIA:
    r"""One random term of the Neumann series for the adjoint.

        v = -k eta prod_{i < p} (I - eta H_i) grad_w f,   p uniform on 0 .. k - 1

    A truncated Neumann series of which one random term is formed, each factor with the Hessian of
    an independent minibatch: unbiased for the series. Ghadimi, Wang, 2018, Algorithm 3.

    Parameters
    ----------
    steps, step_size : k and eta; ``eta H < 1`` is needed.
    """

    steps: int
    step_size: float | Array

    def __post_init__(self) -> None:
        """Validate length and step of the series."""
        _check_series(self)

    def solve(self, product: Product, rhs: PyTree, key: Array) -> tuple[PyTree, Array]:
        """Return ``(v, number of products)``; ``product(i, x)`` is that of the i-th minibatch."""
        p = jax.random.randint(jax.random.fold_in(key, 1), (), 0, self.steps)

        def shrink(i: Array, x: PyTree) -> PyTree:
            return axpy(-self.step_size, product(i, x), x)

        x = jax.lax.fori_loop(0, p, shrink, rhs)
        return _scaled(-self.steps * self.step_size, x), p


@dataclass(frozen=True)
class SHIA:
    r"""All terms of the truncated Neumann series for the adjoint.

        v = -eta sum_{p <= k} prod_{i < p} (I - eta H_i) grad_w f

    All terms of the truncated Neumann series, from the same k minibatches. Ji, Yang, Liang, ICML
    2021, Algorithm 3.

    Parameters
    ----------
    steps, step_size : k and eta; ``eta H < 1`` is needed.
    """

    steps: int
    step_size: float | Array

    def __post_init__(self) -> None:
        """Validate length and step of the series."""
        _check_series(self)

    def solve(self, product: Product, rhs: PyTree, key: Array) -> tuple[PyTree, Array]:
        """Return ``(v, number of products)``; ``product(i, x)`` is that of the i-th minibatch."""
        del key

        def add(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            x, total = carry
            x = axpy(-self.step_size, product(i, x), x)
            return x, axpy(1, x, total)

        _, total = jax.lax.fori_loop(0, self.steps, add, (rhs, rhs))
        return _scaled(-self.step_size, total), jnp.asarray(self.steps, jnp.int32)


for _series in (HIA, SHIA):
    register_node(_series, data_fields=["step_size"], meta_fields=["steps"])
Series = HIA | SHIA


def _check_series(series: HIA | SHIA) -> None:
    """Validate length and step of a series."""
    name = type(series).__name__
    require_positive_int(name, "steps", series.steps)
    require_positive(name, "step_size", series.step_size)


def _scaled(scale: float | Array, x: PyTree) -> PyTree:
    """Multiply a tree by a number, in the dtypes of the tree."""
    return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), x)


def evaluate_at(
    problem: Problem,
    points: dict[str, Variables],
    inner: Mean,
    outer: Mean,
    adjoint: Series | None,
    draw: Callable[[Array], Mean],
    key: Array,
) -> dict[str, PointEvaluation]:
    """Evaluate all directions at some points, on the same minibatches.

    With a series ``adjoint`` they are those at the ``v`` that it forms there.
    ``draw(i)`` takes the mean over the series' i-th minibatch. The series of all points are one:
    that of the product space.
    """
    of_outer = {
        name: outer(partial(outer_directions, problem, w, lam))
        for name, (w, _, lam) in points.items()
    }
    vs, products = {name: point.v for name, point in points.items()}, jnp.zeros((), jnp.int32)
    if adjoint is not None:

        def product(i: Array, x: dict[str, PyTree]) -> dict[str, PyTree]:
            def hvp(batch: PyTree) -> dict[str, PyTree]:
                at = partial(hessian_product, problem, batch=batch)
                return {n: at(w, lam, x[n]) for n, (w, _, lam) in points.items()}

            return draw(i)(hvp)

        rhs = {name: gradient for name, (_, (gradient, _)) in of_outer.items()}
        vs, products = adjoint.solve(product, rhs, key)
    evaluations = {}
    for name, (w, _, lam) in points.items():
        value, (rhs, direct) = of_outer[name]
        gradient, hv, cross = inner(partial(inner_directions, problem, w, vs[name], lam))
        parts = DirectionParts((gradient,), (hv, rhs), (cross, direct))
        evaluations[name] = PointEvaluation(parts, value, vs[name], products)
    return evaluations


def sum_parts(parts: tuple) -> PyTree:
    """Return the direction: the sum of its parts."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *parts)
