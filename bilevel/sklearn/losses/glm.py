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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.linear import CG, Matvec, Solution, relative_residual
from bilevel.sklearn.losses.rows import WeightedRows
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


def logistic_loss(theta: Array, rows: WeightedRows, lower: "FoldFits") -> Evaluation:
    """Return the log-loss of two classes, ``target [n, 1]`` 0 or 1."""
    return compute_cv_loss(LOGISTIC, theta, rows, lower)


def multinomial_loss(theta: Array, rows: WeightedRows, lower: "FoldFits") -> Evaluation:
    """Return the log-loss of more classes, ``target [n, T]`` one-hot."""
    return compute_cv_loss(MULTINOMIAL, theta, rows, lower)


class FoldFits(NamedTuple):
    """Fit and adjoint of every fold, ``[F, d + 1, T]``; the gradient's first norm, ``[F]``."""

    w: Any
    adjoint: Any
    scale: Any


def init_fits(rows: WeightedRows) -> FoldFits:
    """Return where the first inner solves start: at 0."""
    folds = len(rows.train)
    zeros = np.zeros((folds, len(rows.centre) + 1, rows.target.shape[1]))
    return FoldFits(zeros, zeros, np.zeros(folds))


class FoldNewtonState(NamedTuple):
    """State of the loop: the last good ``u``, a ``step`` from it, its ``length``, what is known."""

    u: Array
    step: Array
    length: Array
    value: Array
    gain: Array
    adjoint: Array
    scale: Array
    loss: Array
    inner_residual: Array
    linear_residual: Array
    done: Array
    passes: Array


def compute_cv_loss(link: Link, theta: Array, rows: WeightedRows, lower: FoldFits) -> Evaluation:
    """Return value and gradient over all folds."""
    theta = theta.reshape(len(rows.centre), -1)

    fold = partial(solve_fold, link, rows, jnp.exp(theta))
    squares = rows.squares()
    losses, grads, lower, inner, linear = jax.vmap(fold)(rows.train, rows.held, squares, lower)
    share, used = rows.share, rows.share > 0
    worst = lambda x: jnp.max(jnp.where(used, x, 0))  # noqa: E731
    grad = jnp.tensordot(share, grads, 1).ravel()
    value = jnp.sum(share * losses)
    return Evaluation(value, grad, losses, lower.w, worst(inner), worst(linear), lower)


def solve_fold(
    link: Link,
    rows: WeightedRows,
    penalty: Array,
    train: Array,
    held: Array,
    squares: Array,
    lower: FoldFits,
) -> tuple[Array, Array, FoldFits, Array, Array]:
    """Return loss, gradient, fit and the two residuals of one fold; ``penalty [d, T]``."""
    (s, size), (v, _) = _normalise_weights(train), _normalise_weights(held)
    targets = penalty.shape[1]
    strength = jnp.concatenate([penalty / size, jnp.full((1, targets), _FLAT)])
    # Jacobi: coordinates u = w / unit, in which CG sees a diagonal of about ones.
    unit = 1 / jnp.sqrt(jnp.append(squares, size)[:, None] / (4 * size) + strength)

    def advance(at: FoldNewtonState) -> FoldNewtonState:
        """Try a step; from a good point the next one, or the adjoint if it is the minimum."""
        u = at.u - at.length * at.step
        z = rows.product(unit * u)
        each, mean = link.value(z, rows.target), link.mean(z)
        value = s @ each + jnp.sum(strength * (unit * u) ** 2) / 2
        # The loss of a sure row is a difference of numbers as large as z.
        rounding = jnp.finfo(value.dtype).eps * (value + s @ jnp.max(jnp.abs(z), 1))
        last = at.passes == _STEPS - 1
        good = (value <= at.value + 4 * rounding) | last
        done = good & ((at.gain <= rounding) | last)

        # One product with the rows gives the gradient and the adjoint's right-hand side.
        weighted = [weight[:, None] * (mean - rows.target) for weight in (s, v)]
        slopes = rows.back(jnp.concatenate(weighted, 1))
        gradient = unit * (slopes[:, :targets] + strength * unit * u)
        right = jnp.where(done, unit * slopes[:, targets:], gradient)

        product = partial(_multiply_hessian, link, rows, s, strength, unit, mean)
        found = solve_system(product, right, done, at.adjoint)
        norm = jnp.linalg.norm(gradient)
        scale = jnp.where(at.scale > 0, at.scale, norm)
        new = FoldNewtonState(
            u=u,
            step=found.x,
            length=jnp.ones_like(value),
            value=value,
            gain=jnp.vdot(gradient, found.x),
            adjoint=jnp.where(done, found.x, at.adjoint),
            scale=scale,
            loss=v @ each,
            inner_residual=norm / jnp.where(scale > 0, scale, 1),
            linear_residual=found.residual,
            done=done,
            passes=at.passes + 1,
        )
        # A refused step is tried again at half its length.
        again = at._replace(length=at.length / 2, passes=at.passes + 1)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), new, again)

    first = _init_newton(lower.w / unit, lower.adjoint / unit, lower.scale)
    end = jax.lax.while_loop(lambda at: ~at.done, advance, first)
    w, adjoint = unit * end.u, unit * end.adjoint
    grad = -penalty / size * (w * adjoint)[:-1]
    return end.loss, grad, FoldFits(w, adjoint, end.scale), end.inner_residual, end.linear_residual


def _multiply_hessian(
    link: Link,
    rows: WeightedRows,
    s: Array,
    strength: Array,
    unit: Array,
    mean: Array,
    t: Array,
) -> Array:
    """Multiply ``t`` by the Hessian in coordinates ``w / unit``, at the mean of the link."""
    curved = s[:, None] * link.curved(mean, rows.product(unit * t))
    return unit * (rows.back(curved) + strength * unit * t)


def _init_newton(u: Array, adjoint: Array, scale: Array) -> FoldNewtonState:
    """Return the state whose first trial is ``u`` itself, which is accepted."""
    none = jnp.zeros(())
    return FoldNewtonState(
        u=u,
        step=jnp.zeros_like(u),
        length=none,
        value=none + jnp.inf,
        gain=none + jnp.inf,
        adjoint=adjoint,
        scale=scale,
        loss=none,
        inner_residual=none,
        linear_residual=none,
        done=none > 0,
        passes=jnp.zeros((), jnp.int32),
    )


def _normalise_weights(weights: Array) -> tuple[Array, Array]:
    """Return weights that sum to 1, and their sum before, 1 where there are none."""
    total = jnp.sum(weights)
    total = jnp.where(total > 0, total, 1)
    return weights / total, total


def solve_system(product: Matvec, right: Array, exact: Array, start: Array) -> Solution:
    """Solve the linear system of one step: factorised where it is small, else by CG."""
    if right.size > _DENSE:
        solver = CG(tol=jnp.where(exact, _LINEAR, _FORCING))
        return solver.solve(product, right, jnp.where(exact, start, 0))
    basis = jnp.eye(right.size).reshape(-1, *right.shape)
    factor = (jnp.linalg.cholesky(jax.vmap(product)(basis).reshape(right.size, -1)), True)
    x = cho_solve(factor, right.ravel()).reshape(right.shape)
    return Solution(x, relative_residual(product, right, x), right.size)
