r"""Cross-validation loss of ridge, and its gradient, in closed form.

    w = (gram + D)^{-1} cross,   D = diag(e^theta),   loss = mean (x . w - y)^2 over held-out rows
    d loss / d theta_j = -e^{theta_j} w_j . v_j,      (gram + D) v = d loss / d w

Bengio 2000; one Cholesky factor per fold serves both.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.linear import relative_residual
from bilevel.sklearn.losses.fold_sums import FoldSums
from bilevel.sklearn.search.descent import Evaluation


def ridge_loss(theta: Array, sums: FoldSums, _: None) -> Evaluation:
    """Return the mean over folds and targets; ``theta [d]`` penalise the sum of squares."""
    penalty = jnp.exp(theta)

    def fold(gram, cross, held_gram, held_cross, square):
        def product(v: Array) -> Array:
            return gram @ v + penalty[:, None] * v

        factor = (jnp.linalg.cholesky(gram + jnp.diag(penalty)), True)
        w = cho_solve(factor, cross)
        w = w + cho_solve(factor, cross - product(w))
        slope = held_gram @ w - held_cross
        loss = square + jnp.sum(w * (slope - held_cross))
        b = 2 * slope
        v = cho_solve(factor, b)
        grad = -penalty * jnp.sum(w * v, 1)
        inner, linear = relative_residual(product, cross, w), relative_residual(product, b, v)
        return loss, grad, w, inner, linear

    losses, grads, params, inner, linear = jax.vmap(fold)(*sums[:5])
    used = sums.share > 0
    losses = jnp.maximum(losses, 0)  # rounding, where the fit is perfect
    value = jnp.sum(sums.share * losses)
    grad = sums.share @ grads
    worst = lambda x: jnp.max(jnp.where(used, x, 0))  # noqa: E731
    return Evaluation(value, grad, losses, params, worst(inner), worst(linear))
