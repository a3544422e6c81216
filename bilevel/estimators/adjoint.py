r"""The adjoint system of an inner minimiser: which matrix, which right side, which answer.

Smooth inner loss g, minimiser ``grad g(w, h) = 0``, H = d^2 g / dw^2, C = d^2 g / dw dh:

    H x = grad_w outer,   d outer / d h = grad_h outer - C^T x

With a non-smooth part r, known by its proximal map P(z, h, s), the minimiser is a fixed point
``w = P(z, h, s)``, ``z = w - s grad g(w, h)``, for any step s > 0. Let ``E = dP/dh`` and
``D = dP/dz``, symmetric with eigenvalues in [0, 1] because P is the gradient of a convex function:

    (I - D + s D H) dw = (E - s D C) dh,      (I - D + s H D) u = grad_w outer,
    d outer / d h = grad_h outer + (E - s D C)^T u

Off the range of D (where P is locally constant: coordinates that are zero, groups that are off)
``dw = E dh``, mostly 0. On it, multiply the second equation by D and put ``v = s D u = D x``:

    K x = D grad_w outer,   K = D (I - D) / s + D H D,   u = grad_w outer - H v + v / s,
    d outer / d h = grad_h outer + E^T u - C^T v

K is symmetric, and positive definite on the range of D when H is, because ``K = D (R + H) D`` with
``R = (D^{-1} - I) / s`` the Hessian of r along its smooth pieces. For the lasso D is 0/1 and K the
Hessian restricted to the support; there ``E = -s sign(w)``, ``s u = v``, and elsewhere ``E = 0``.
For a group that is on, R is the curvature of its norm. For bounds, ``E = 1`` where one binds.
Bertrand et al., JMLR 2022 (element by element); Bolte, Le, Pauwels, Silveti-Falls, NeurIPS 2021.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from bilevel.core import Data, Loss, Problem, inner_loss
from bilevel.estimators.systems import System
from bilevel.linear import Operator, OutputLoss, gaussian, stable_step
from bilevel.solvers import Sampler, Solver, apply_prox, stability_limit
from bilevel.utils import (
    Counter,
    DataTree,
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    axpy,
)


def adjoint_system(
    problem: Problem,
    hyper: Hyper,
    params: Params,
    data: Data,
    *,
    damping: Number | None,
    step: Number,
    key: Key,
) -> System:
    """Return the system at ``params``; a proximal part is seen through steps of size ``step``."""
    outer = jax.value_and_grad(problem.outer, argnums=(0, 1))
    value, (b, direct) = outer(params, hyper, data.outer)
    gradient, hessian = _hessian(problem.inner, hyper, params, data.inner)

    def in_hyper(params: Params) -> PyTree:
        return jax.grad(problem.inner, argnums=1)(params, hyper, data.inner)

    def smooth_grad(x: PyTree) -> PyTree:
        return jax.tree.map(jnp.subtract, direct, jax.jvp(in_hyper, (params,), (x,))[1])

    if problem.prox is None:
        operator = _damped(hessian, damping)
        return System(operator, b, value, smooth_grad, gradient, gradient, lambda q: q)

    composite, z = inner_loss(problem), axpy(-step, gradient, params)
    moved, d = jax.linearize(lambda z: apply_prox(composite, z, hyper, step), z)
    # A row of D that is 0 maps every vector to 0, any other row almost none.
    support = jax.tree.map(lambda x: (x != 0).astype(x.dtype), d(gaussian(z, key)))
    restricted = _damped(_restrict(hessian, d, step, support), damping)

    def grad(x: PyTree) -> PyTree:
        v = d(x)
        left = axpy(-1, hessian.product(v), b)
        left = left if damping is None else axpy(-damping, x, left)
        u = axpy(1 / step, v, left)
        _, pull = jax.vjp(lambda hyper: apply_prox(composite, z, hyper, step), hyper)
        return jax.tree.map(jnp.add, smooth_grad(v), pull(u)[0])

    # Off the support a step says how far params are from their fixed point; on it the proximal
    # mapping takes the place of the gradient.
    off = jax.tree.map(lambda w, p, on: (1 - on) * (w - p), params, moved, support)
    mapping = jax.tree.map(lambda w, p, on: on * (w - p) / step, params, moved, support)
    defect = axpy(-1, d(hessian.product(off)), mapping)

    def displacement(q: PyTree) -> PyTree:
        return axpy(1, d(q), off)

    return System(restricted, d(b), value, grad, gradient, defect, displacement)


def proximal_step(
    problem: Problem,
    solver: Solver,
    hyper: Hyper,
    params: Params,
    state: PyTree,
    data: Data,
    key: Key,
) -> tuple[Number, int | Counter]:
    """Return ``(s, products used)``: about the solver's own step, or 1 / the measured curvature.

    At the minimiser every ``s`` gives the same answer; near it, one of this size finds the support
    best. A smooth problem does not look at it.
    """
    if problem.prox is None:
        return 1.0, 0
    if (limit := stability_limit(solver, hyper, state)) is not None:
        return 2 / limit, 0
    _, hessian = _hessian(problem.inner, hyper, params, data.inner)
    return stable_step("Implicit", None, hessian, params, key)


def _hessian(loss: Loss, hyper: Hyper, params: Params, data: DataTree) -> tuple[PyTree, Operator]:
    """Return gradient and Hessian of ``loss`` at ``params``, the latter by products."""

    def slopes(batch: DataTree) -> Callable[[PyTree], PyTree]:
        return lambda params: jax.grad(loss)(params, hyper, batch)

    def minibatch(v: PyTree, key: Key, batch_size: int) -> PyTree:
        sampler = Sampler(batch_size)
        batch, _ = sampler.draw(data, key, sampler.init(data))
        return jax.jvp(slopes(batch), (params,), (v,))[1]

    def gauss_newton(split: OutputLoss) -> Operator:
        operator = _hessian(split.linearised(params), hyper, params, data)[1]
        return replace(operator, factors=partial(split.sample_curvature, params, hyper, data))

    gradient, product = jax.linearize(slopes(data), params)
    split = partial(gauss_newton, loss) if isinstance(loss, OutputLoss) else None
    factors = None
    if isinstance(loss, OutputLoss):
        factors = partial(loss.sample_curvature, params, hyper, data)
    operator = Operator(product, minibatch=minibatch, gauss_newton=split, factors=factors)
    return gradient, operator


def _restrict(
    hessian: Operator, d: Callable[[PyTree], PyTree], step: Number, support: PyTree
) -> Operator:
    """Return ``K = D (I - D) / s + D H D`` in place of ``H``."""

    def around(v: PyTree, product: Callable[[PyTree], PyTree]) -> PyTree:
        inside = d(v)
        return d(axpy(1 / step, axpy(-1, inside, v), product(inside)))

    split = hessian.gauss_newton
    return Operator(
        lambda v: around(v, hessian.product),
        minibatch=lambda v, key, size: around(v, lambda y: hessian.sample(y, key, size)),
        support=support,
        gauss_newton=None if split is None else lambda: _restrict(split(), d, step, support),
    )


def _damped(operator: Operator, damping: Number | None) -> Operator:
    split = operator.gauss_newton
    return replace(
        operator,
        damping=damping,
        gauss_newton=None if split is None else lambda: _damped(split(), damping),
    )
