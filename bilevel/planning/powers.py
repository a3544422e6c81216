r"""Functions of the mean step ``A = [[M, 0], [-eta T, M]]``, ``M = diag(mu)``: O(n^2) each.

Any power series of A is ``[[f(M), 0], [-eta T o F, f(M)]]`` with the divided differences
``F_ab = (f(mu_a) - f(mu_b)) / (mu_a - mu_b)``, which the product rule builds without a division:
``(f, F) (g, G) = (f g, f_a G_ab + F_ab g_b)``. So one pair serves every hyperparameter.
"""

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """A function of the mean step: ``f [n]`` on the diagonal, ``F [n, n]`` beside the coupling."""

    f: np.ndarray
    F: np.ndarray

    def __matmul__(self, other: "Pair") -> "Pair":
        """Return the product of the two matrices."""
        return Pair(self.f * other.f, self.f[:, None] * other.F + self.F * other.f)

    def plus(self, other: "Pair", scale: float = 1.0) -> "Pair":
        """Return ``self + scale other``."""
        return Pair(self.f + scale * other.f, self.F + scale * other.F)


class Sums(NamedTuple):
    """The sums ``A^N``, ``sum_{j<N} A^j`` and ``sum_{j<N} (N - j) A^j``, N ``terms``."""

    terms: int
    power: Pair
    plain: Pair
    weighted: Pair

    def then(self, other: "Sums") -> "Sums":
        """Return the sums over ``terms + other.terms`` terms."""
        return Sums(
            self.terms + other.terms,
            self.power @ other.power,
            self.plain.plus(self.power @ other.plain),
            self.weighted.plus(self.plain, other.terms).plus(self.power @ other.weighted),
        )


class Powers:
    """Sums of any length by repeated doubling; what was once computed is kept."""

    def __init__(self, mu: np.ndarray) -> None:
        """``mu [n]``: the factors per step of the mean, one per eigenvector."""
        zero, one = np.zeros((len(mu), len(mu))), np.ones((len(mu), len(mu)))
        unit = Pair(np.ones(len(mu)), zero)
        self.none = Sums(0, unit, Pair(0 * mu, zero), Pair(0 * mu, zero))
        self.doubled = [Sums(1, Pair(mu, one), unit, unit)]
        self.known: dict[int, Sums] = {}

    def sums(self, count: int) -> Sums:
        """Return the sums of ``count`` terms; O(n^2 log count)."""
        if count in self.known:
            return self.known[count]
        total, bit = self.none, 0
        while count >> bit:
            if bit == len(self.doubled):
                self.doubled.append(self.doubled[-1].then(self.doubled[-1]))
            if count >> bit & 1:
                total = total.then(self.doubled[bit])
            bit += 1
        self.known[count] = total
        return total
