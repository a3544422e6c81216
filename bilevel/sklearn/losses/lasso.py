r"""Cross-validation loss of the elastic net on second moments, and its gradient on the support.

    w = argmin 1/2 w^T gram w - cross^T w + sum_j l1_j |w_j| + 1/2 sum_j l2_j w_j^2
    (gram + diag(l2))_SS v_S = (d loss / d w)_S,   S = {j : w_j != 0}
    d loss / d log l1_j = -l1_j sign(w_j) v_j,     d loss / d log l2_j = -l2_j w_j v_j

Coordinate descent with exact solves on the support, then the implicit function theorem restricted
to it (Bertrand et al., JMLR 2022, "Implicit differentiation for fast hyperparameter selection in
non-smooth convex learning").
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.linear import relative_residual
from bilevel.sklearn.losses.fold_sums import FoldSums
from bilevel.sklearn.search.descent import Evaluation

_ROUNDS = 1000  # at most
_SMALL = 1e-8  # change of the fit, in units of its gradient's scale, at which rounds end
_NEAR = 1e-10  # curvature of the proximal term, in units of the largest


def lasso_loss(theta: Array, sums: FoldSums, lower: Array) -> Evaluation:
    """Return the loss at ``theta [d]``: logarithms of the penalties of ``|w_j|``."""
    return _loss(jnp.exp(theta), jnp.zeros_like(theta), sums, lower, 1)


def elastic_net_loss(theta: Array, sums: FoldSums, lower: Array) -> Evaluation:
    """Return the loss at ``theta [2 d]``: logarithms of the penalties of both terms."""
    l1, l2 = jnp.split(jnp.exp(theta), 2)
    return _loss(l1, l2, sums, lower, 2)


def _loss(l1: Array, l2: Array, sums: FoldSums, lower: Array, kinds: int) -> Evaluation:
    def fold(gram, cross, held_gram, held_cross, square, start):
        b = cross[:, 0]
        w = fit_elastic_net(gram, b, l1, l2, start)
        support, sign = (w != 0).astype(b.dtype), jnp.sign(w)
        factor, matrix = _on_support(gram, l2, support)
        slope = held_gram @ w - held_cross[:, 0]
        loss = square + w @ (slope - held_cross[:, 0])
        rhs = 2 * support * slope
        v = cho_solve(factor, rhs)
        v = jnp.where(jnp.all(jnp.isfinite(v)), support * v, 0)
        violation = jnp.maximum(jnp.abs(b - gram @ w - l2 * w) - l1, 0)
        inner = jnp.max(violation) / jnp.maximum(jnp.max(jnp.abs(b)), 1e-300)
        linear = relative_residual(lambda v: matrix @ v, rhs, v)
        return loss, jnp.concatenate([-l1 * sign * v, -l2 * w * v]), w, inner, linear

    losses, grads, w, inner, linear = jax.vmap(fold)(*sums[:5], lower)
    used, losses = sums.share > 0, jnp.maximum(losses, 0)
    grad = (sums.share @ grads)[: kinds * len(l1)]
    worst = lambda x: jnp.max(jnp.where(used, x, 0))  # noqa: E731
    value = jnp.sum(sums.share * losses)
    return Evaluation(value, grad, losses, w[..., None], worst(inner), worst(linear), w)


def fit_elastic_net(gram: Array, b: Array, l1: Array, l2: Array, start: Array) -> Array:
    """Return the minimiser ``[d]``, from ``start``.

    A sweep of coordinate descent finds which columns join; the rest is exact, so that correlated
    columns, for which sweeps alone need hundreds, take a few rounds. Ends where a sweep changes
    next to nothing.
    """
    small = _SMALL * jnp.max(jnp.abs(b))

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, _, k = carry
        w, change = sweep_coordinates(gram, b, l1, l2, w)
        return minimise_on_support(gram, b, l1, l2, w), change, k + 1

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] > small) & (carry[2] < _ROUNDS)

    none = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, advance, (start, small + jnp.inf, none))[0]


def sweep_coordinates(gram: Array, b: Array, l1: Array, l2: Array, w: Array) -> tuple[Array, Array]:
    """Return ``w`` after one sweep over all columns; the largest change, in units of ``b``."""
    diagonal = jnp.diagonal(gram) + l2
    safe = jnp.where(diagonal > 0, diagonal, 1)

    def update(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, slope, change = carry
        free = slope[j] + diagonal[j] * w[j]  # slope = b - (gram + diag(l2)) w
        new = jnp.sign(free) * jnp.maximum(jnp.abs(free) - l1[j], 0) / safe[j]
        new = jnp.where(diagonal[j] > 0, new, 0)
        step = new - w[j]
        slope = (slope - step * gram[j]).at[j].add(-step * l2[j])  # a row lies together in memory
        return w.at[j].set(new), slope, jnp.maximum(change, jnp.abs(step) * diagonal[j])

    slope = b - gram @ w - l2 * w
    w, _, change = jax.lax.fori_loop(0, len(b), update, (w, slope, jnp.zeros(())))
    return w, change


def minimise_on_support(gram: Array, b: Array, l1: Array, l2: Array, w: Array) -> Array:
    """Minimise over the columns in use with their signs; one that would change it leaves.

    The way to the minimiser without constraint is gone up to the first change of sign, until there
    is none: the objective falls all the way (feature-sign search, Lee et al., NeurIPS 2006).
    Where columns depend on each other the minimiser is the one next to ``w``: a proximal step, so
    short of the minimiser by next to nothing elsewhere.
    """
    near = _NEAR * jnp.max(jnp.diagonal(gram) + l2)

    def objective(w: Array) -> Array:
        return w @ (gram @ w + l2 * w) / 2 - b @ w + l1 @ jnp.abs(w)

    def advance(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        w, _ = carry
        support, sign = (w != 0).astype(b.dtype), jnp.sign(w)
        factor, _ = _on_support(gram, l2 + near, support)
        # As far along the way to the minimiser as no coefficient changes its sign.
        free = support * cho_solve(factor, support * (b - l1 * sign + near * w))
        crossing = free * sign < 0
        reach = jnp.where(crossing, w / jnp.where(crossing, w - free, 1), jnp.inf)
        first = jnp.minimum(jnp.min(reach), 1)
        new = jnp.where(reach <= first, 0, w + first * (free - w))
        worse = objective(new) > objective(w) + 1e-12 * jnp.abs(objective(w))
        fine = jnp.all(jnp.isfinite(free)) & ~worse
        return jnp.where(fine, new, w), fine & jnp.any(crossing)

    return jax.lax.while_loop(lambda carry: carry[1], advance, (w, jnp.array(True)))[0]


def _on_support(gram: Array, l2: Array, support: Array) -> tuple[tuple[Array, bool], Array]:
    """Factorise the Hessian on the support, the identity elsewhere; the factor and the matrix."""
    matrix = gram * support * support[:, None] + jnp.diag(jnp.where(support > 0, l2, 1))
    return (jnp.linalg.cholesky(matrix), True), matrix
