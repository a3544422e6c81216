r"""Cross-validation loss of a penalised linear model, by implicit differentiation of every fold.

    inner = sum_i s_i loss(x_i . w + b, y_i) + 1/2 sum_j e^{theta_j} w_j^2
    outer = sum_i v_i loss(x_i . w + b, y_i) / sum_i v_i,   the mean over folds
    H a = grad_w outer,   d outer / d theta_j = -e^{theta_j} w_j a_j

What `bilevel.Implicit(bl.Newton(), ...)` computes, written out so that it compiles in a third of
the time: the Newton steps and the adjoint system are passes of one loop, all folds in one vmapped
call. Systems are factorised where they are small; else CG sees products with the rows alone, and
sparse rows stay sparse. ``theta`` and ``w`` are ``[d, T]``, theta flattened.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.linear import CG, Solution, relative_residual
from bilevel.sklearn.losses.rows import Rows
from bilevel.sklearn.search.descent import Evaluation

_FLAT = 1e-8  # curvature of the intercepts per unit of weight, where the data give none
_STEPS = 60  # of Newton's method, at most, refused ones included
_DENSE = 300  # coefficients up to which Newton's systems are factorised
_LINEAR, _FORCING = 1e-10, 1e-3  # residuals of the adjoint and of the Newton system


class Link(NamedTuple):
    """A loss of ``z, y [n, T]``: ``value [n]``, ``mean`` with slope ``mean(z) - y``.

    ``curved(m, t)``: the Hessian in z, at the mean m, times ``t [n, T]``.
    """

    value: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array]
    curved: Callable[[Array, Array], Array]


LOGISTIC = Link(
    lambda z, y: jnp.sum(jax.nn.softplus(z) - y * z, 1),
    jax.nn.sigmoid,
    lambda m, t: m * (1 - m) * t,
)
MULTINOMIAL = Link(
    lambda z, y: jax.nn.logsumexp(z, 1) - jnp.sum(y * z, 1),
    lambda z: jax.nn.softmax(z, 1),
    lambda m, t: m * t - m * jnp.sum(m * t, 1, keepdims=True),
)
SQUARED = Link(lambda z, y: jnp.sum((z - y) ** 2, 1) / 2, lambda z: z, lambda _, t: t)


def logistic_loss(theta: Array, rows: Rows, lower: Any) -> Evaluation:
    """Two classes, ``target [n, 1]`` 0 or 1."""
    return cross_validated(LOGISTIC, theta, rows, lower)


def multinomial_loss(theta: Array, rows: Rows, lower: Any) -> Evaluation:
    """More classes, ``target [n, T]`` one-hot."""
    return cross_validated(MULTINOMIAL, theta, rows, lower)


class Lower(NamedTuple):
    """Of every fold: fit and adjoint ``[F, d + 1, T]``, the gradient's first norm ``[F]``."""

    w: Any
    adjoint: Any
    scale: Any


def cold(rows: Rows) -> Lower:
    """Where the first inner solves start: at 0."""
    folds = len(rows.train)
    zeros = np.zeros((folds, len(rows.centre) + 1, rows.target.shape[1]))
    return Lower(zeros, zeros, np.zeros(folds))


class Carry(NamedTuple):
    """Of the loop: the last good ``u``, a ``step`` from it and its ``length``, what is known."""

    u: Array
    step: Array
    length: Any
    value: Any
    gain: Any
    adjoint: Array
    scale: Any
    loss: Any
    inner_residual: Any
    linear_residual: Any
    done: Any
    count: Any


def cross_validated(link: Link, theta: Array, rows: Rows, lower: Lower) -> Evaluation:
    """Value and gradient over all folds."""
    theta = theta.reshape(len(rows.centre), -1)

    def fold(*of: Any) -> Any:
        return solved_fold(link, rows, jnp.exp(theta), *of)

    squares = rows.squares()
    losses, grads, lower, inner, linear = jax.vmap(fold)(rows.train, rows.held, squares, lower)
    share, used = rows.share, rows.share > 0
    worst = lambda x: jnp.max(jnp.where(used, x, 0))  # noqa: E731
    grad = jnp.tensordot(share, grads, 1).ravel()
    value = jnp.sum(share * losses)
    return Evaluation(value, grad, losses, lower.w, worst(inner), worst(linear), lower)


def solved_fold(
    link: Link, rows: Rows, penalty: Array, train: Array, held: Array, squares: Array, lower: Lower
) -> Any:
    """Loss, gradient, lower level and residuals of one fold; ``penalty [d, T]``."""
    size, total = jnp.sum(train), jnp.sum(held)
    size, total = jnp.where(size > 0, size, 1), jnp.where(total > 0, total, 1)
    s, v = train / size, held / total
    targets = penalty.shape[1]
    strength = jnp.concatenate([penalty / size, jnp.full((1, targets), _FLAT)])
    # Jacobi: coordinates u = w / unit, in which CG sees a diagonal of about ones.
    unit = 1 / jnp.sqrt(jnp.append(squares, size)[:, None] / (4 * size) + strength)

    def advance(at: Carry) -> Carry:
        """Try a step; from a good point the next one, or the adjoint if it is the minimum."""
        u = at.u - at.length * at.step
        z = rows.product(unit * u)
        each, mean = link.value(z, rows.target), link.mean(z)
        value = s @ each + jnp.sum(strength * (unit * u) ** 2) / 2
        # The loss of a sure row is a difference of numbers as large as z.
        rounding = jnp.finfo(value.dtype).eps * (value + s @ jnp.max(jnp.abs(z), 1))
        last = at.count == _STEPS - 1
        good = (value <= at.value + 4 * rounding) | last
        done = good & ((at.gain <= rounding) | last)

        weighted = [weight[:, None] * (mean - rows.target) for weight in (s, v)]
        slopes = rows.back(jnp.concatenate(weighted, 1))
        gradient = unit * (slopes[:, :targets] + strength * unit * u)
        right = jnp.where(done, unit * slopes[:, targets:], gradient)

        def product(t: Array) -> Array:
            curved = s[:, None] * link.curved(mean, rows.product(unit * t))
            return unit * (rows.back(curved) + strength * unit * t)

        found = solve(product, right, done, at.adjoint)
        norm = jnp.linalg.norm(gradient)
        scale = jnp.where(at.scale > 0, at.scale, norm)
        new = Carry(
            u, found.x, jnp.ones_like(value), value, jnp.vdot(gradient, found.x),
            jnp.where(done, found.x, at.adjoint), scale, v @ each,
            norm / jnp.where(scale > 0, scale, 1), found.residual, done, at.count + 1,
        )  # fmt: skip
        again = at._replace(length=at.length / 2, count=at.count + 1)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, again)

    u, none = lower.w / unit, jnp.zeros(())
    first = Carry(
        u, jnp.zeros_like(u), none, none + jnp.inf, none + jnp.inf, lower.adjoint / unit,
        lower.scale, none, none, none, none > 0, jnp.zeros((), jnp.int32),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda at: ~at.done, advance, first)
    w, adjoint = unit * end.u, unit * end.adjoint
    grad = -penalty / size * (w * adjoint)[:-1]
    lower = Lower(w, adjoint, end.scale)
    return end.loss, grad, lower, end.inner_residual, end.linear_residual


def solve(product: Any, right: Array, exact: Array, start: Array) -> Solution:
    """The linear system of one step: factorised where it is small, else by CG."""
    if right.size > _DENSE:
        solver = CG(tol=jnp.where(exact, _LINEAR, _FORCING))
        return solver.solve(product, right, jnp.where(exact, start, 0))
    basis = jnp.eye(right.size).reshape(-1, *right.shape)
    factor = (jnp.linalg.cholesky(jax.vmap(product)(basis).reshape(right.size, -1)), True)
    x = cho_solve(factor, right.ravel()).reshape(right.shape)
    return Solution(x, relative_residual(product, right, x), right.size)
