r"""Exact second moments of SGD on least squares, with one target or p of them.

For ``f_i = |a_i.x - b_i|^2 / 2`` the deviation ``u = x - x*`` moves by

    u' = u - eta mean_batch a_i (a_i.u - r_i),   r_i = b_i - a_i.x*
    P' = M P M + eta^2 p { K(P) - H P H - 2 mean (a_i.ubar) r_i a_i a_i^T + mean r_i^2 a_i a_i^T }

with ``M = I - eta H``. The derivative of the iterates with respect to ``theta`` in ``b(theta)``
is the same process with the p targets ``J = db / dtheta``, the same minibatches included, and it
does not see ``u``: so ``LeastSquares.from_data(A, J)`` describes it, and its second moment, summed
over the p columns, stays ``[n, n]`` however many hyperparameters there are. What ties the two
together (the bias of a hypergradient) is in :mod:`bilevel.noise.ridge`.

Setting: Iutzeler, Pauwels, Vaiter, NeurIPS 2024, section on least squares; the recursions are
elementary and are tested against :mod:`bilevel.noise.affine`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise.batches import batch_factor
from bilevel.noise.moments.affine import Moments
from bilevel.noise.moments.feedback import Multiplicative
from bilevel.noise.moments.rows import Rows, solve_normal
from bilevel.noise.moments.rules import Rule, push_mean, spread, transpose_block
from bilevel.utils import RenamedMethod, register_node


@dataclass(frozen=True)
class LeastSquares:
    """The process ``u`` of deviations from the solution; make it with :meth:`from_data`.

    Parameters
    ----------
    rows : ``A [m, n]`` and ``H``.
    residuals : ``r [m, p]`` at the solution.
    solution : ``[n, p]``, or ``[n]`` for one target without an axis of its own.
    factor : noise fraction p of a batch, :func:`bilevel.noise.batch_factor`.
    """

    rows: Rows
    residuals: Array
    solution: Array
    factor: float | Array

    @classmethod
    def from_data(
        cls, A: ArrayLike, targets: ArrayLike, batch_size: int | None, sampling: str = "iid"
    ) -> "LeastSquares":
        """Return the process of minibatch SGD on ``mean |a_i.x - targets_i|^2 / 2``.

        Parameters
        ----------
        A : ``[m, n]``.  targets : ``[m]`` or ``[m, p]``.  batch_size, sampling : see
            :func:`bilevel.noise.batch_factor`; ``None`` is the full batch.

        Raises
        ------
        ValueError : shapes that do not match, a singular ``A^T A``, epoch sampling.

        Examples
        --------
        >>> import numpy as np
        >>> from bilevel.noise import LeastSquares
        >>> A, b = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([1.0, 0.0, 3.0])
        >>> iterate = LeastSquares.from_data(A, b, batch_size=1)
        >>> derivative = LeastSquares.from_data(A, np.eye(3), batch_size=1)  # theta = b
        >>> derivative.solution.shape
        (2, 3)
        """
        rows = Rows.from_matrix(A)
        solution = solve_normal("LeastSquares", rows, rows.gramian, targets)
        residuals = jnp.asarray(targets) - rows.A @ solution
        factor = batch_factor(len(rows.A), batch_size, sampling)
        return cls(rows, residuals.reshape(len(rows.A), -1), solution, factor)

    of = RenamedMethod("from_data")

    @property
    def curvature(self) -> Array:
        """Return the Hessian that the mean step sees, ``[n, n]``."""
        return self.rows.gramian

    def start(self, x: Array, slots: int = 1) -> Moments:
        """Return the moments at a known point, like ``solution``.

        The other slots are at the solution.
        """
        u = (jnp.asarray(x) - self.solution).reshape(len(self.solution), -1)
        mean = jnp.zeros((slots, *u.shape), u.dtype).at[0].set(u)
        return Moments(mean, jnp.einsum("aip,bjp->aibj", mean, mean))

    def step(self, moments: Moments, rule: Rule) -> Moments:
        """Return the moments after one step; O(m n (n + p))."""
        return advance_moments(self, moments, rule, self.gradient_noise(moments))

    def gradient_noise(self, moments: Moments) -> Array:
        """Return the covariance of the gradient of one example, averaged over the iterates.

        ``[n, n]``.
        """
        P, mean = moments.second[0, :, 0], moments.mean[0]
        weights = jnp.sum(self.residuals * (self.residuals - 2 * self.rows.A @ mean), 1)
        H = self.rows.gramian
        return self.rows.weighted(self.rows.forms(P) + weights) - H @ P @ H

    def fluctuation(self, P: Array) -> Array:
        """Return ``K(P) - H P H``, ``[n, n]``: see :mod:`bilevel.noise.feedback`."""
        return self.rows.fluctuation(P)

    def stationary_moments(self, rule: Rule, solve: Callable[[Array], Array]) -> Moments:
        """Return the stationary moments: see :func:`bilevel.noise.limits.stationary`."""
        still = self.start(self.solution, rule.slots)
        return still._replace(second=solve(self.step(still, rule).second))


register_node(LeastSquares, ["rows", "residuals", "solution", "factor"], [])


def advance_moments(process: Multiplicative, moments: Moments, rule: Rule, noise: Array) -> Moments:
    """Return the moments one step on, for gradient noise of covariance ``noise``."""
    H = process.curvature
    half = transpose_block(push_mean(rule, H, moments.second))
    after = transpose_block(push_mean(rule, H, half)) + process.factor * spread(rule, noise)
    return Moments(push_mean(rule, H, moments.mean), after)
