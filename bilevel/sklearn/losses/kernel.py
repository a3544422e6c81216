r"""Cross-validation loss of Gaussian kernel ridge, differentiated in closed form by JAX.

k(x, x') = exp(-1/2 sum_j e^{rho_j} (x_j - x'_j)^2),   (K + e^a I) c = y on training rows
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_solve

from bilevel.linear import relative_residual
from bilevel.sklearn.losses.rows import WeightedRows
from bilevel.sklearn.search.descent import Evaluation


def kernel_matrix(rho: Array, A: Array, B: Array) -> Array:
    """Return the kernel, ``[n, m]``, for rows ``A [n, d]`` and ``B [m, d]``."""
    scaled = jnp.exp(rho / 2)
    A, B = A * scaled, B * scaled
    squares = jnp.sum(A**2, 1)[:, None] + jnp.sum(B**2, 1) - 2 * A @ B.T
    return jnp.exp(-jnp.maximum(squares, 0) / 2)


def kernel_loss(theta: Array, rows: WeightedRows, _: None) -> Evaluation:
    """Return the loss at ``theta [1 + d]``: ``a``, then ``rho``."""

    def outer(theta: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        K, alpha = kernel_matrix(theta[1:], rows.X, rows.X), jnp.exp(theta[0])

        def fold(train: Array, held: Array) -> tuple[Array, Array, Array]:
            # Rows of weight 0 have coefficient 0; weights s stand for noise alpha / s.
            root = jnp.sqrt(train)
            matrix = root[:, None] * K * root + alpha * jnp.eye(len(K))
            factor = (jax.lax.stop_gradient(jnp.linalg.cholesky(matrix)), True)

            def product(c: Array) -> Array:
                return matrix @ c

            right = root[:, None] * rows.target
            scaled = jax.lax.custom_linear_solve(
                product, right, lambda _, b: cho_solve(factor, b), symmetric=True
            )
            dual = root[:, None] * scaled
            total = jnp.sum(held)
            errors = jnp.mean((K @ dual - rows.target) ** 2, 1)
            loss = held @ errors / jnp.where(total > 0, total, 1)
            return loss, dual, relative_residual(product, right, scaled)

        losses, dual, residual = jax.vmap(fold)(rows.train, rows.held)
        return jnp.sum(rows.share * losses), (losses, dual, jnp.max(residual))

    (value, (losses, dual, residual)), grad = jax.value_and_grad(outer, has_aux=True)(theta)
    return Evaluation(value, grad, losses, dual, residual, residual)
