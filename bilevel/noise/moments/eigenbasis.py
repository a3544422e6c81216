r"""Second moments in O(n) per step: the diagonal in the eigenbasis of the Hessian, and no more.

    P_j' = A_j P_j A_j^T + p L L^T [ w_j + feedback_j ],   A_j = T - L h_j e_0^T

``w`` is the diagonal of ``W = mean |r_i|^2 a_i a_i^T``. Two feedbacks keep diagonals among
themselves: none (additive noise: relative error O(step size)), and that of Gaussian rows with
residuals independent of them, ``K(P) = tr(H P) H + 2 H P H`` (Isserlis), exact for fresh Gaussian
examples at every step; ``sum_j P_j`` is then ``E |x - x*|^2``. The stationary limit is in closed
form, by Sherman and Morrison (Ziyin, Liu, Mori, Ueda, arXiv:2102.05375, Theorem 2).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevel.noise import checks
from bilevel.noise.moments.least_squares import LeastSquares
from bilevel.noise.moments.rules import Rule
from bilevel.utils import RenamedMethod, register_node, require_positive_scalars


class DiagonalMoments(NamedTuple):
    """The second moments ``[s, s, n]`` of the slots, coordinate by coordinate."""

    second: Array

    def squared_error(self, slot: int = 0) -> Array:
        """Return ``E |x - x*|^2`` of one slot; ``()``."""
        return jnp.sum(self.second[slot, slot])


@dataclass(frozen=True)
class Diagonal:
    """A process known by ``h [n]``, ``noise`` ``w [n]`` and ``factor`` p; Gaussian rows or not.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import Diagonal, rules
    >>> process = Diagonal(jnp.array([1.0, 2.0]), jnp.array([0.1, 0.2]), 1.0, gaussian=True)
    >>> moments = process.step(process.start(jnp.ones(2)), rules.sgd(0.1))
    >>> moments.second.shape
    (1, 1, 2)
    """

    curvature: Array
    noise: Array
    factor: float | Array
    gaussian: bool

    @classmethod
    def from_least_squares(cls, process: LeastSquares, gaussian: bool) -> tuple["Diagonal", Array]:
        """Return the diagonal of a process with rows, and its eigenvectors ``[n, n]``."""
        h, vectors = jnp.linalg.eigh(process.curvature)
        W = process.rows.weighted(jnp.sum(process.residuals**2, 1))
        return cls(h, jnp.sum(vectors * (W @ vectors), 0), process.factor, gaussian), vectors

    of = RenamedMethod("from_least_squares")

    def start(self, deviation: Array, slots: int = 1) -> DiagonalMoments:
        """Return the moments at a deviation in the eigenbasis, ``[n]`` or ``[n, p]`` (summed)."""
        squares = jnp.sum(jnp.asarray(deviation).reshape(len(self.curvature), -1) ** 2, 1)
        return DiagonalMoments(jnp.zeros((slots, slots, len(squares))).at[0, 0].set(squares))

    def step(self, moments: DiagonalMoments, rule: Rule) -> DiagonalMoments:
        """Return the moments after one step; O(n)."""
        P, h = moments.second, self.curvature
        reads = jnp.zeros(rule.slots, P.dtype).at[0].set(1)
        maps = rule.transition - h[:, None, None] * jnp.outer(rule.gain, reads)
        moved = jnp.einsum("jac,cdj,jbd->abj", maps, P, maps)
        noise = self.noise + self._feedback(P[0, 0])
        return DiagonalMoments(
            moved + self.factor * jnp.einsum("a,b,j->abj", rule.gain, rule.gain, noise)
        )

    def stationary(self, step_size: float | Array) -> Array:
        r"""Return the diagonal ``[n]`` that plain SGD ends at, in closed form.

        ``P_j = eta p (w_j + tau h_j) / (h_j (2 - (1 + p) eta h_j))`` for Gaussian rows, ``tau =
        h.P``; ``eta p w_j / (h_j (2 - eta h_j))`` for additive noise.

        Raises
        ------
        ValueError : a step size beyond the mean-square limit.
        """
        require_positive_scalars("Diagonal.stationary", step_size=step_size)
        h, p = self.curvature, self.factor
        own = 2 - (1 + p * self.gaussian) * step_size * h
        checks.below_limit("Diagonal.stationary", 2 - jnp.min(own), 2.0, "step size x curvature")
        alone = step_size * p * self.noise / (h * own)
        if not self.gaussian:
            return alone
        share = step_size * p * jnp.sum(h / own)
        checks.below_limit("Diagonal.stationary", share, 1.0, "the share of noise that feeds back")
        return alone + step_size * p / own * jnp.sum(h * alone) / (1 - share)

    def _feedback(self, P: Array) -> Array | float:
        """Return the diagonal of ``tr(H P) H + H P H``, or nothing."""
        h = self.curvature
        return jnp.sum(h * P) * h + h**2 * P if self.gaussian else 0.0


register_node(Diagonal, ["curvature", "noise", "factor"], ["gaussian"])
