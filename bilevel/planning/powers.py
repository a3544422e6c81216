r"""Functions of the mean step ``A = [[M, 0], [T o N, M]]``, ``M = diag(M_a)``: O(n^2) each.

``M_a [s, s]`` moves the s slots of an eigenvector (iterate and, with momentum, velocity), ``T_ab``
couples derivative to iterate through ``N [s, s]``. Any power series of A is ``[[f(M), 0], [T o F,
f(M)]]``, which the product rule builds without a division: ``(f, F) (g, G) = (f g, f_a G_ab + F_ab
g_b)``. So one pair serves every hyperparameter. Without momentum ``F_ab = -eta (f(mu_a) - f(mu_b))
/ (mu_a - mu_b)``, the divided differences.
"""

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """A function of the mean step: ``f [n, s, s]``, and ``F [n, n, s, s]`` beside the coupling."""

    f: np.ndarray
    F: np.ndarray

    def __matmul__(self, other: "Pair") -> "Pair":
        """Return the product of the two matrices."""
        return Pair(self.f @ other.f, self.f[:, None] @ other.F + self.F @ other.f)

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

    def __init__(self, maps: np.ndarray, beside: np.ndarray) -> None:
        """``maps [n, s, s]``, the step of each eigenvector's slots; ``beside`` is ``N [s, s]``."""
        n, s, _ = maps.shape
        zero = np.zeros((n, n, s, s))
        unit = Pair(np.broadcast_to(np.eye(s), maps.shape), zero)
        self.none = Sums(0, unit, Pair(0 * maps, zero), Pair(0 * maps, zero))
        self.doubled = [Sums(1, Pair(maps, zero + beside), unit, unit)]
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
