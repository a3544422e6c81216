r"""Cross-validation loss of the elastic net on second moments, and its gradient on the support.

    w = argmin 1/2 w^T gram w - cross^T w + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2
    (gram + diag(l2))_SS v_S = (d loss / d w)_S,   S = {j : w_j != 0}
    d loss / d log l1_j = -l1_j sign(w_j) v_j,     d loss / d log l2_j = -l2_j w_j v_j

Coordinate descent, then the implicit function theorem restricted to the support (Bertrand et al.,
JMLR 2022, "Implicit differentiation for fast hyperparameter selection in non-smooth convex
learning"). The fit on the support is solved once more, to rounding.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.linear import relative_residual
from bilevel.sklearn.descent import Evaluation
from bilevel.sklearn.moments import Moments

_SWEEPS = 1000  # over the columns, at most
_SMALL = 1e-7  # change of the fit, in units of its gradient's scale, at which sweeps end


def lasso_loss(theta: Array, moments: Moments, lower: Any) -> Evaluation:
    """``theta [d]``: logarithms of the penalties of ``|w_j|``."""
    return _loss(jnp.exp(theta), jnp.zeros_like(theta), moments, lower, 1)


def elastic_net_loss(theta: Array, moments: Moments, lower: Any) -> Evaluation:
    """``theta [2 d]``: logarithms of the penalties of ``|w_j|``, then of ``w_j^2 / 2``."""
    l1, l2 = jnp.split(jnp.exp(theta), 2)
    return _loss(l1, l2, moments, lower, 2)


def _loss(l1: Array, l2: Array, moments: Moments, lower: Array, kinds: int) -> Evaluation:
    def fold(gram, cross, held_gram, held_cross, square, start):
        b = cross[:, 0]
        w = coordinate_descent(gram, b, l1, l2, start)
        support, sign = (w != 0).astype(b.dtype), jnp.sign(w)
        matrix = gram * support * support[:, None] + jnp.diag(jnp.where(support > 0, l2, 1))
        factor = (jnp.linalg.cholesky(matrix), True)
        right = support * (b - l1 * sign)
        polished = support * cho_solve(factor, right)
        # Columns that depend on each other have no unique fit; and a sign must not change.
        fine = jnp.all(jnp.isfinite(polished)) & jnp.all(polished * sign >= 0)
        w = jnp.where(fine, polished, w)
        slope = held_gram @ w - held_cross[:, 0]
        loss = square + w @ (slope - held_cross[:, 0])
        rhs = 2 * support * slope
        v = cho_solve(factor, rhs)
        v = jnp.where(jnp.all(jnp.isfinite(v)), support * v, 0)
        violation = jnp.maximum(jnp.abs(b - gram @ w - l2 * w) - l1, 0)
        inner = jnp.max(violation) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-300)
        linear = relative_residual(lambda v: matrix @ v, rhs, v)
        return loss, jnp.concatenate([-l1 * sign * v, -l2 * w * v]), w, inner, linear

    losses, grads, w, inner, linear = jax.vmap(fold)(*moments[:5], lower)
    used, losses = moments.share > 0, jnp.maximum(losses, 0)
    grad = (moments.share @ grads)[: kinds * len(l1)]
    worst = lambda x: jnp.max(jnp.where(used, x, 0))  # noqa: E731
    value = jnp.sum(moments.share * losses)
    return Evaluation(value, grad, losses, w[..., None], worst(inner), worst(linear), w)


def coordinate_descent(gram: Array, b: Array, l1: Array, l2: Array, start: Array) -> Array:
    """The minimiser ``[d]``, from ``start``: sweeps until a sweep changes next to nothing."""
    diagonal = jnp.diagonal(gram) + l2
    safe = jnp.where(diagonal > 0, diagonal, 1)
    small = _SMALL * jnp.max(jnp.abs(b))

    def coordinate(j: Array, carry: Any) -> Any:
        w, slope, change = carry
        free = slope[j] + diagonal[j] * w[j]  # slope = b - (gram + diag(l2)) w
        new = jnp.sign(free) * jnp.maximum(jnp.abs(free) - l1[j], 0) / safe[j]
        new = jnp.where(diagonal[j] > 0, new, 0)
        step = new - w[j]
        slope = (slope - step * gram[:, j]).at[j].add(-step * l2[j])
        return w.at[j].set(new), slope, jnp.maximum(change, jnp.abs(step) * diagonal[j])

    def sweep(carry: Any) -> Any:
        w, slope, _, k = carry
        w, slope, change = jax.lax.fori_loop(0, len(b), coordinate, (w, slope, jnp.zeros(())))
        return w, slope, change, k + 1

    def unfinished(carry: Any) -> Array:
        return (carry[2] > small) & (carry[3] < _SWEEPS)

    slope = b - gram @ start - l2 * start
    none = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, sweep, (start, slope, small + jnp.inf, none))[0]
