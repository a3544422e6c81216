r"""Linearised moments of SGD and its derivative in blocks: ``2 p + 1`` of size n, for any loss.

With ``u = x - x*`` and ``E_j = D_j - D*_j`` the linearisation of :mod:`bilevel.noise.linearised`
is lower triangular, and the hyperparameters do not see one another:

    u'   = u   - eta mean_batch [ H_i u + g_i ]
    E_j' = E_j - eta mean_batch [ H_i E_j + T_ij u + e_ij ]

``e_ij = H_i D*_j + d grad f_i / d theta_j``, ``T_ij`` its derivative in x. So a hypergradient,
which contracts x with one ``D_j`` at a time, needs ``E u u^T``, ``E u E_j^T`` and ``E E_j E_j^T``
only: memory m n^2 (1 + p) where the dense pair asks for m n^2 (1 + p)^2. For a penalised linear
model :mod:`bilevel.noise.ridge` is cheaper still.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.noise.batches import batch_factor
from bilevel.noise.per_example import Flat
from bilevel.noise.ridge import JointMoments
from bilevel.noise.rules import Rule
from bilevel.problem import Data, Problem
from bilevel.trees import PyTree


@dataclass(frozen=True)
class Coupled:
    """The process of the deviations ``(u, E_1 .. E_p)``; make it with :meth:`of`.

    Parameters
    ----------
    matrices, couplings : ``H_i [m, n, n]`` and ``T_ij [p, m, n, n]``.
    gradients, derivatives : ``g_i [m, n]`` and ``e_ij [p, m, n]``, means 0.
    derivative : ``D* [p, n]``.
    factor : noise fraction p of a batch, :func:`bilevel.noise.batch_factor`.
    """

    matrices: Array
    couplings: Array
    gradients: Array
    derivatives: Array
    derivative: Array
    factor: Any

    @classmethod
    def of(
        cls,
        problem: Problem,
        hyper: PyTree,
        params: PyTree,
        data: Data,
        *,
        batch_size: int | None,
        sampling: str = "iid",
        chunk: int | None = 256,
    ) -> "Coupled":
        """The linearisation at ``params``, which must minimise the inner loss.

        Raises
        ------
        ValueError : a proximal part or ``problem.start``; epoch sampling.

        Examples
        --------
        >>> import bilevel as bl
        >>> from bilevel.noise import Coupled
        >>> case = bl.testing.ridge(seed=0)
        >>> process = Coupled.of(
        ...     case.problem, case.hyper, case.params, case.data, batch_size=2
        ... )
        >>> process.couplings.shape
        (4, 23, 4, 4)
        """
        flat = Flat.of("Coupled.of", problem, hyper, params, data)
        x, theta = flat.x, flat.theta
        H = jax.jacfwd(flat.gradient)(x, theta)
        derivative = -jnp.linalg.solve(H, jax.jacfwd(flat.gradient, argnums=1)(x, theta)).T
        basis = jnp.eye(len(theta), dtype=theta.dtype)

        def one(loss: Any) -> tuple[Array, ...]:
            gradient = jax.grad(loss)

            def moved(x: Array) -> Array:
                def along(D: Array, t: Array) -> Array:
                    return jax.jvp(gradient, (x, theta), (D, t))[1]

                return jax.vmap(along)(derivative, basis)

            hessian = jax.jacfwd(lambda x: gradient(x, theta))(x)
            return hessian, jax.jacfwd(moved)(x), gradient(x, theta), moved(x)

        matrices, couplings, gradients, moved = flat.map(one, jnp.arange(flat.count), chunk)
        factor = batch_factor(flat.count, batch_size, sampling)
        first = (jnp.moveaxis(couplings, 1, 0), gradients, jnp.moveaxis(moved, 1, 0))
        return cls(matrices, *first, derivative, factor)

    @property
    def curvature(self) -> Array:
        """The mean Hessian, ``[n, n]``."""
        return jnp.mean(self.matrices, 0)

    def rotated(self, vectors: Array) -> "Coupled":
        """The same process in the coordinates ``vectors^T u`` (orthogonal columns, ``[n, n]``)."""
        return Coupled(
            vectors.T @ self.matrices @ vectors,
            vectors.T @ self.couplings @ vectors,
            self.gradients @ vectors,
            self.derivatives @ vectors,
            self.derivative @ vectors,
            self.factor,
        )

    def fluctuation(self, P: Array) -> Array:
        """``mean H_i P H_i - H P H``, ``[n, n]``: see :mod:`bilevel.noise.feedback`."""
        return _covariance(self.matrices, P, self.matrices)

    def settle(self, rule: Rule, solve: Callable[[Array], Array]) -> JointMoments:
        """The stationary moments of plain SGD: see :func:`bilevel.noise.limits.stationary`."""
        if rule.slots != 1:
            raise ValueError(
                "Coupled knows plain SGD only, and this rule keeps "
                f"{rule.slots} vectors. Use noise.linearised for momentum."
            )
        eta, m, n = rule.gain[0], *self.gradients.shape
        noisy = eta**2 * self.factor
        M = jnp.eye(n) - eta * self.curvature

        def rest(source: Array) -> Array:
            return solve(source[None, :, None])[0, :, 0]

        xx = rest(noisy * self.gradients.T @ self.gradients / m)

        def one(parts: tuple[Array, Array]) -> tuple[Array, Array]:
            T, e = parts
            mean = jnp.mean(T, 0)
            shared = _covariance(self.matrices, xx, T) + self.gradients.T @ e / m
            xd = rest(noisy * shared - eta * M @ xx @ mean.T)
            half = noisy * _covariance(self.matrices, xd.T, T) - eta * M @ xd.T @ mean.T
            own = eta**2 * mean @ xx @ mean.T + noisy * (_covariance(T, xx, T) + e.T @ e / m)
            return xd, rest(half + half.T + own)

        xd, dd = jax.lax.map(one, (self.couplings, self.derivatives))
        still = jnp.zeros((1, n), xx.dtype)
        means = still, jnp.zeros((len(xd), 1, n), xx.dtype)
        return JointMoments(*means, xx[None, :, None], xd[:, None, :, None], dd[:, None, :, None])


jax.tree_util.register_dataclass(
    Coupled,
    ["matrices", "couplings", "gradients", "derivatives", "derivative", "factor"],
    [],
)


def _covariance(X: Array, P: Array, Y: Array) -> Array:
    """``mean X_i P Y_i^T - (mean X_i) P (mean Y_i)^T`` of ``[m, n, n]``: ``[n, n]``."""
    each = jnp.einsum("iab,icb->ac", X @ P, Y) / len(X)
    return each - jnp.mean(X, 0) @ P @ jnp.mean(Y, 0).T
