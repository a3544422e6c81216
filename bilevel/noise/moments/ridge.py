r"""Exact joint second moments of SGD and its derivative for penalised least squares.

For ``f_i = (a_i.x - b_i(theta))^2 / 2 + sum_k penalty_k(theta) x_k^2 / 2`` with hyperparameters
``theta [p]``, ``u = x - x*``, ``E_j = dx/dtheta_j - dx*/dtheta_j``, ``Lam = diag(penalty)`` and
``R_j = dLam / dtheta_j``,

    u'   = u   - eta mean_batch [ a_i (a_i.u - r_i)      + Lam (u + x*) ]
    E_j' = E_j - eta mean_batch [ a_i (a_i.E_j - s_ij)   + Lam (E_j + D*_j) + R_j (u + x*) ]

``r_i = b_i - a_i.x*``, ``s_ij = db_i/dtheta_j - a_i.D*_j``. Only the terms with ``a_i`` fluctuate,
so with ``M = I - eta (H + Lam)`` and ``V(u, v) = E Cov_i(a_i (a_i.u - r_i), a_i (a_i.v - s_i))``

    Puu' = M Puu M + eta^2 p V(u, u)
    PuE' = M PuE M - eta M Puu R + eta^2 p V(u, E)
    PEE' = M PEE M - eta (M PEu R + R PuE M) + eta^2 R Puu R + eta^2 p V(E, E)

2p + 1 blocks ``[n, n]``. A penalty couples ``E`` to ``u``; targets ``b(theta)`` alone do not, but
both see the same minibatches, so ``PuE`` is not 0 and biases a hypergradient. Elementary; tested
against :mod:`bilevel.noise.affine`. Setting: Iutzeler, Pauwels, Vaiter, NeurIPS 2024.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise.batches import batch_factor
from bilevel.noise.moments.rows import Rows, require_shape, solve_normal
from bilevel.noise.moments.rules import Rule, outer_product, push_mean, spread, transpose_block
from bilevel.utils import RenamedMethod, register_node


class JointMoments(NamedTuple):
    """First and second moments of ``(u, E_1 .. E_p)``; s slots as in :mod:`bilevel.noise.rules`.

    ``mean_x [s, n]``, ``mean_d [p, s, n]``; ``xx [s, n, s, n]`` = ``E u u^T``; ``xd`` and ``dd``,
    ``[p, s, n, s, n]``, = ``E u E_j^T`` and ``E E_j E_j^T``.
    """

    mean_x: Array
    mean_d: Array
    xx: Array
    xd: Array
    dd: Array

    def squared_errors(self, slot: int = 0) -> tuple[Array, Array]:
        """Return ``E |x - x*|^2``, ``()``, and ``E |D_j - D*_j|^2`` per hyperparameter, ``[p]``."""
        return (
            jnp.trace(self.xx[slot, :, slot]),
            jnp.trace(self.dd[:, slot, :, slot], axis1=1, axis2=2),
        )


@dataclass(frozen=True)
class Ridge:
    """The joint process of deviations ``(u, E)``; make it with :meth:`from_data`.

    Parameters
    ----------
    rows : ``A [m, n]`` and ``H``.
    residuals, residuals_d : ``r [m]``, ``s [p, m]`` at the solution.
    curvature : ``H + Lam``, ``[n, n]``.
    coupling : the diagonals of ``R_j``, ``[p, n]``.
    solution, derivative : ``x* [n]``, ``D* [p, n]``.
    factor : noise fraction p of a batch, :func:`bilevel.noise.batch_factor`.
    """

    rows: Rows
    residuals: Array
    residuals_d: Array
    curvature: Array
    coupling: Array
    solution: Array
    derivative: Array
    factor: float | Array

    @classmethod
    def from_data(
        cls,
        A: ArrayLike,
        b: ArrayLike,
        penalty: ArrayLike,
        penalty_jacobian: ArrayLike,
        targets_jacobian: ArrayLike | None = None,
        *,
        batch_size: int | None,
        sampling: str = "iid",
    ) -> "Ridge":
        """Return the process of minibatch SGD on penalised least squares.

        Parameters
        ----------
        A, b : ``[m, n]``, ``[m]``.
        penalty : ``Lam``'s diagonal, ``[n]`` or a scalar for all.
        penalty_jacobian : ``d penalty / d theta``, ``[n, p]``.
        targets_jacobian : ``db / d theta``, ``[m, p]``; ``None`` for 0.
        batch_size, sampling : see :func:`bilevel.noise.batch_factor`, ``None`` for the
            full batch.

        Raises
        ------
        ValueError : shapes that do not match, an indefinite or singular ``H + Lam``, epochs.

        Examples
        --------
        >>> import numpy as np
        >>> from bilevel.noise import Ridge
        >>> A, b = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([1.0, 0.0, 3.0])
        >>> penalty = np.exp([-1.0, -1.0])  # one log-penalty per feature
        >>> process = Ridge.from_data(A, b, penalty, np.diag(penalty), batch_size=1)
        >>> process.derivative.shape
        (2, 2)
        """
        rows = Rows.from_matrix(A)
        m, n = rows.A.shape
        penalty = jnp.broadcast_to(jnp.asarray(penalty, rows.A.dtype), (n,))
        coupling = jnp.asarray(penalty_jacobian, rows.A.dtype).T
        p = coupling.shape[0]
        require_shape("penalty_jacobian", coupling.T, (n, p), f"A has {n} features")
        jacobian = jnp.zeros((m, p)) if targets_jacobian is None else jnp.asarray(targets_jacobian)
        require_shape("targets_jacobian", jacobian, (m, p), f"{m} rows, {p} hyperparameters")
        curvature = rows.gramian + jnp.diag(penalty)
        solution = solve_normal("Ridge", rows, curvature, b)
        pull = rows.A.T @ jacobian / m - coupling.T * solution[:, None]
        derivative = jnp.linalg.solve(curvature, pull).T
        return cls(
            rows,
            jnp.asarray(b) - rows.A @ solution,
            jacobian.T - derivative @ rows.A.T,
            curvature,
            coupling,
            solution,
            derivative,
            batch_factor(m, batch_size, sampling),
        )

    of = RenamedMethod("from_data")

    def start(self, x: Array, derivative: float | Array = 0.0, slots: int = 1) -> JointMoments:
        """Return the moments at a known ``x [n]`` and ``derivative [p, n]``.

        Other slots undeviating.
        """
        u, E = jnp.asarray(x) - self.solution, derivative - self.derivative
        mean_x = jnp.zeros((slots, len(u)), u.dtype).at[0].set(u)
        mean_d = jnp.zeros((len(E), slots, len(u)), u.dtype).at[:, 0].set(E)
        xd, dd = jax.vmap(lambda E: (outer_product(mean_x, E), outer_product(E, E)))(mean_d)
        return JointMoments(mean_x, mean_d, outer_product(mean_x, mean_x), xd, dd)

    def restart(self, moments: JointMoments, derivative: float | Array = 0.0) -> JointMoments:
        """Return the same iterate, with a derivative that begins now: ``Forward(..., start=k)``."""
        mean_x, slots = moments.mean_x, moments.mean_x.shape[0]
        fresh = self.start(mean_x[0], derivative, slots)
        xd, dd = jax.vmap(lambda E: (outer_product(mean_x, E), outer_product(E, E)))(fresh.mean_d)
        return JointMoments(mean_x, fresh.mean_d, moments.xx, xd, dd)

    def step(self, moments: JointMoments, rule: Rule) -> JointMoments:
        """Return the moments after one step; O(m n^2 p)."""
        mean_x, mean_d, xx, xd, dd = moments
        C, r, A = self.curvature, self.residuals, self.rows.A

        def with_noise(mean: Array, P: Array, r: Array, s: Array, u: Array, v: Array) -> Array:
            """Add ``Cov_i(a_i (a_i.u - r_i), a_i (a_i.v - s_i))``, averaged over ``(u, v)``."""
            weights = self.rows.forms(P[0, :, 0]) - r * (A @ v[0]) - s * (A @ u[0]) + r * s
            return mean + self.factor * spread(rule, self._covariance(P, weights, r, s, u, v))

        def right(Y: Array, coupling: float | Array = 0.0) -> Array:
            return transpose_block(push_mean(rule, C, transpose_block(Y), coupling))

        def each(s: Array, R: Array, E: Array, xd: Array, dd: Array) -> tuple[Array, ...]:
            lead = R[:, None, None]
            mean = push_mean(rule, C, E, R * mean_x[0])
            left_xd, left_dx = (
                push_mean(rule, C, xd),
                push_mean(rule, C, transpose_block(xd), lead * xx[0]),
            )
            left_dd = push_mean(rule, C, dd, lead * xd[0])
            after_xd = right(left_xd, lead * transpose_block(left_xx)[0])
            after_dd = right(left_dd, lead * transpose_block(left_dx)[0])
            after_xd = with_noise(after_xd, xd, r, s, mean_x, E)
            return mean, after_xd, with_noise(after_dd, dd, s, s, E, E)

        left_xx = push_mean(rule, C, xx)
        after_xx = with_noise(right(left_xx), xx, r, r, mean_x, mean_x)
        parts = (self.residuals_d, self.coupling, mean_d, xd, dd)
        after_d, after_xd, after_dd = jax.vmap(each)(*parts)
        return JointMoments(push_mean(rule, C, mean_x), after_d, after_xx, after_xd, after_dd)

    def fluctuation(self, P: Array) -> Array:
        """Return ``K(P) - H P H``, ``[n, n]``: see :mod:`bilevel.noise.feedback`."""
        return self.rows.fluctuation(P)

    def stationary_moments(self, rule: Rule, solve: Callable[[Array], Array]) -> JointMoments:
        """Return the stationary moments: see :func:`bilevel.noise.limits.stationary`."""
        still = self.start(self.solution, self.derivative, rule.slots)
        still = still._replace(xx=solve(self.step(still, rule).xx))
        still = still._replace(xd=jax.vmap(solve)(self.step(still, rule).xd))
        return still._replace(dd=jax.vmap(solve)(self.step(still, rule).dd))

    def _covariance(
        self, P: Array, weights: Array, r: Array, s: Array, u: Array, v: Array
    ) -> Array:
        """Return the mean over rows of products, less the product of the means."""
        H, A, m = self.rows.gramian, self.rows.A, len(self.rows.A)
        rho, sigma = A.T @ r / m, A.T @ s / m
        product = H @ P[0, :, 0] @ H - jnp.outer(H @ u[0], sigma) - jnp.outer(rho, H @ v[0])
        return self.rows.weighted(weights) - product - jnp.outer(rho, sigma)


register_node(
    Ridge,
    [
        "rows",
        "residuals",
        "residuals_d",
        "curvature",
        "coupling",
        "solution",
        "derivative",
        "factor",
    ],
    [],
)
