r"""What an unconverged derivative, or an unconverged iterate, means for a hypergradient.

At the returned params, with H and C the second derivatives of the inner loss and b the outer
gradient, an unrolled derivative satisfies the equation of the minimiser's up to a remainder:

    reverse, implicit:  H u = b - a,      grad - exact = C^T e,         H e = a
    forward:            H D + C = R,      slope - exact slope = b . x,  H x = R u

and the iterate is off by d, ``H d = grad inner``, which changes b by ``(Hessian of outer) d``. The
remainder is what is left after all steps, so its slowest directions dominate it, and a few steps of
conjugate gradients tell how large it is once divided by H. First order: exact on quadratics.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem, count_examples
from bilevel.estimators.adjoint import System
from bilevel.estimators.refusals import unused_by_minimiser
from bilevel.utils import PyTree, axpy, norm, size, vdot, zeros_like

_PRODUCTS, _FEWEST = 12, 3  # with the Hessian, of the few steps of conjugate gradients
_SHARE = 0.12  # of the gradients of the estimate itself that its evidence may cost
_TINY = 10_000  # rows times params up to which the evidence is whole: it costs microseconds
_STREAM = 2**31 - 1  # of the random sample: no step of a solver has this number
_ROWS = 64  # a Hessian of fewer rows says nothing of that of all


class Budget(NamedTuple):
    """How many ``products`` with the Hessian a remainder may take, over how many ``rows``.

    Evidence may cost an eighth of the estimate whatever the number of rows, so its products are
    fewer, and then its rows, a random sample, where the inner steps see few. With no products the
    residuals are reported and what they stand for is not.
    """

    products: int
    rows: int

    @classmethod
    def of(cls, problem: Problem, solver: Any, data: Data, params: PyTree, passes: int) -> "Budget":
        """For an estimate that costs ``passes`` gradients on the batches of ``solver``."""
        n = count_examples(data.inner)
        batch = getattr(solver, "batch_size", None) or n
        gradients = _SHARE * passes * batch  # of single rows; a product costs about five halves
        if problem.evidence == "full":
            return cls(2 * _PRODUCTS, n)
        if problem.evidence == "off":
            return cls(0, min(n, _ROWS))
        products = int((gradients / n - 3) / 5)
        if n * size(params) <= _TINY or products >= _PRODUCTS:
            return cls(_PRODUCTS, n)
        if products >= _FEWEST:
            return cls(products, n)
        rows = int(gradients / (3 + 5 * _FEWEST))
        if rows >= _ROWS:
            return cls(_FEWEST, min(rows, n))
        few = min(n, max(int(gradients / 3), _ROWS))
        return cls(0, n if n * size(params) <= 100 * _TINY else few)

    def draw(self, data: Data, key: Array) -> Data:
        """The data, or with a random sample of its inner rows, the same for the same key."""
        n = count_examples(data.inner)
        if self.rows == n:
            return data
        chosen = jax.random.randint(jax.random.fold_in(key, _STREAM), (self.rows,), 0, n)
        return replace(data, inner=jax.tree.map(lambda x: x[chosen], data.inner))


class Remainder(NamedTuple):
    """``residual`` of the equation of the derivative, relative ``error`` of grad, ``()`` each."""

    residual: Array
    error: Array | None


def adjoint_remainder(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    left: PyTree,
    right: PyTree,
    grad: PyTree,
    products: int,
    whole: bool,
) -> Remainder:
    """Of an adjoint that leaves ``left`` of ``H u = right``; ``right`` is the outer gradient."""
    hyper, params, left, right, grad = jax.lax.stop_gradient((hyper, params, left, right, grad))
    residual = relative_size(norm(left), norm(right))
    if steps_are_objective(problem, hyper, params, data):
        return Remainder(residual, jnp.zeros_like(residual) if whole else residual)
    if not products or problem.prox is not None:
        return Remainder(residual, None)

    def in_hyper(params: PyTree) -> PyTree:
        return jax.grad(problem.inner, argnums=1)(params, hyper, data.inner)

    gradient, product = jax.linearize(
        lambda w: jax.grad(problem.inner)(w, hyper, data.inner), params
    )
    e = solve_roughly(product, left, products)
    wrong = jax.jvp(in_hyper, (params,), (e,))[1]
    exact = axpy(-1, wrong, grad)
    derivative = relative_size(norm(wrong), norm(exact))
    inner = _displacement_error(problem, hyper, params, data, product, gradient, right, products)
    return Remainder(residual, jnp.hypot(derivative, inner))


def system_remainder(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    system: System,
    x: PyTree,
    products: int,
) -> Array | None:
    """Relative error of ``system.grad(x)``: of ``x``, of the damping, and of the params."""
    if not products:
        return None
    x = jax.lax.stop_gradient(x)
    left = axpy(-1, system.operator.product(x), system.rhs)
    better = axpy(1, solve_roughly(system.operator.product, left, products), x)
    now, then = system.grad(x), system.grad(better)
    wrong = relative_size(norm(axpy(-1, then, now)), norm(then))
    d = system.displacement(solve_roughly(system.operator.product, system.defect, products))
    outer = jax.grad(problem.outer)
    b, changed = jax.jvp(lambda w: outer(w, hyper, data.outer), (params,), (d,))
    return jax.lax.stop_gradient(jnp.hypot(wrong, relative_size(norm(changed), norm(b))))


def tangent_remainder(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    tangent: PyTree,
    direction: PyTree,
    slope: Array,
    products: int,
    whole: bool,
) -> Remainder:
    """Of a tangent ``D u`` along ``direction`` u, along which the outer loss has the slope."""
    hyper, params, tangent, direction, slope = jax.lax.stop_gradient(
        (hyper, params, tangent, direction, slope)
    )

    def inner(params: PyTree, hyper: PyTree) -> PyTree:
        return jax.grad(problem.inner)(params, hyper, data.inner)

    left = jax.jvp(inner, (params, hyper), (tangent, direction))[1]
    right = jax.jvp(lambda hyper: inner(params, hyper), (hyper,), (direction,))[1]
    residual = relative_size(norm(left), norm(right))
    if steps_are_objective(problem, hyper, params, data):
        return Remainder(residual, jnp.zeros_like(residual) if whole else residual)
    if not products or problem.prox is not None:
        return Remainder(residual, None)
    gradient, product = jax.linearize(lambda w: inner(w, hyper), params)
    b = jax.grad(problem.outer)(params, hyper, data.outer)
    wrong = vdot(b, solve_roughly(product, left, products))
    derivative = relative_size(jnp.abs(wrong), jnp.abs(slope - wrong))
    displaced = _displacement_error(problem, hyper, params, data, product, gradient, b, products)
    return Remainder(residual, jnp.hypot(derivative, displaced))


def steps_are_objective(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> bool:
    """Whether the steps themselves are what is tuned, and not the minimiser that they approach.

    With a start of the problem's own, or a hyperparameter of the solver, the derivative of all
    steps is right however far they are from the minimiser.
    """
    return problem.start is not None or bool(unused_by_minimiser(problem, hyper, params, data))


def _displacement_error(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    product: Callable[[PyTree], PyTree],
    gradient: PyTree,
    b: PyTree,
    products: int,
) -> Array:
    """By how much the outer gradient would change at the minimiser, relative to it."""
    d = solve_roughly(product, gradient, products)
    outer = lambda w: jax.grad(problem.outer)(w, hyper, data.outer)  # noqa: E731
    return relative_size(norm(jax.jvp(outer, (params,), (d,))[1]), norm(b))


def solve_roughly(product: Callable[[PyTree], PyTree], b: PyTree, steps: int) -> PyTree:
    """``H^{-1} b`` by a few steps of conjugate gradients; what negative curvature leaves stays."""
    length = norm(b)
    scaled = jax.tree.map(lambda x: x / jnp.where(length > 0, length, 1), b)

    def advance(carry: PyTree, _: None) -> tuple[PyTree, None]:
        x, r, p, squared = carry
        image = product(p)
        curvature = vdot(p, image)
        good = (curvature > 0) & (squared > 0)
        alpha = jnp.where(good, squared / jnp.where(good, curvature, 1), 0)
        x, r = axpy(alpha, p, x), axpy(-alpha, image, r)
        following = jnp.where(good, vdot(r, r), 0)
        p = axpy(following / jnp.where(squared > 0, squared, 1), p, r)
        return (x, r, p, following), None

    begin = zeros_like(scaled), scaled, scaled, vdot(scaled, scaled)
    (x, _, _, _), _ = jax.lax.scan(advance, begin, length=steps)
    return jax.tree.map(lambda x: length * x, x)


def relative_size(error: Array, exact: Array) -> Array:
    """``error / exact``, 0 where there is no error."""
    return jnp.where(error == 0, 0, error / exact)
