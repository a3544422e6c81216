r"""Solves with principal blocks of one semidefinite matrix, where the columns in use change by few.

    [A_BB  C] [x]   [r]       B: the columns of the last factor L; C: a column A_Bj for each j that
    [C^T   K] [t] = [s]       came since, with its own rows in K, and e_j for each that left

    Z = L^{-1} C,   (K - Z^T Z) t = s - Z^T L^{-1} r,   x = L^{-T} (L^{-1} r - Z t)

A column costs a triangular solve then, not a factorisation.
"""

import numpy as np
from scipy.linalg import cho_solve, get_lapack_funcs

factorise, solve_lower = get_lapack_funcs(("potrf", "trtrs"), dtype=np.float64)

_NEAR = 1e-10  # curvature below this part of a column's own is none: the step stays next to w
_FEW = 150  # columns up to which a factor costs less than what would be saved
_PART = 0.2  # of the columns of a factor: with more changes another one costs less
_EXACT = 1e-9  # relative residual up to which a solve by changes serves


def solve_near(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a semidefinite system; where there is no curvature the step is long, not infinite."""
    unit = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    factor, failed = _factorise_near(matrix, unit)
    if failed:
        return np.zeros_like(right)
    return unit * cho_solve((factor, True), unit * right, check_finite=False)


def _factorise_near(matrix: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, int]:
    scaled = np.asfortranarray(matrix * unit * unit[:, None])
    scaled[np.diag_indices(len(unit))] += _NEAR
    return factorise(scaled, lower=1, overwrite_a=1)


class WorkingSet:
    """The semidefinite ``matrix [k, k]`` of columns that may be in use; more may be added."""

    def __init__(self, matrix: np.ndarray) -> None:
        """Start without a factor."""
        self.matrix = matrix
        self._set_factor(np.zeros(0, int), np.zeros((0, 0)))

    def add(self, between: np.ndarray, block: np.ndarray) -> None:
        """Add columns: their products ``[k, m]`` with the old ones and ``[m, m]`` themselves."""
        self.matrix = np.block([[self.matrix, between], [between.T, block]])
        self.place = np.append(self.place, np.full(len(block), -1))

    def solve(self, at: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Solve with the block of the columns ``at [q]``, as :func:`solve_near` does."""
        if len(at) <= _FEW:
            return solve_near(self.matrix[np.ix_(at, at)], right)
        used = np.zeros(len(self.matrix), bool)
        used[at] = True
        changed = np.flatnonzero(used != (self.place >= 0))
        if len(changed) <= _PART * len(self.base):
            x = self._solve_changed(at, right, changed)
            if x is not None:
                return x
        unit = self._units(at)
        factor, failed = _factorise_near(self.matrix[np.ix_(at, at)], unit)
        if failed:
            self._set_factor(at[:0], factor[:0, :0])
            return np.zeros_like(right)
        self._set_factor(at, factor)
        return unit * cho_solve((factor, True), unit * right, check_finite=False)

    def _units(self, at: np.ndarray) -> np.ndarray:
        return 1 / np.sqrt(np.maximum(self.matrix[at, at], 1e-300))

    def _set_factor(self, base: np.ndarray, factor: np.ndarray) -> None:
        self.base, self.factor = base, factor
        self.place = np.full(len(self.matrix), -1)  # of each column in the factor
        self.place[base] = np.arange(len(base))
        self.known = np.zeros(0, int)  # columns of Z
        self.Z = np.zeros((len(base), 0), order="F")

    def _solve_changed(
        self, at: np.ndarray, right: np.ndarray, changed: np.ndarray
    ) -> np.ndarray | None:
        """Return the solution by the last factor; nothing where rounding spoils it."""
        unit = self._units(np.arange(len(self.matrix)))
        whole = np.zeros(len(self.matrix))
        whole[at] = unit[at] * right
        first = solve_lower(self.factor, whole[self.base], lower=1)[0]
        Z = self._find_columns(changed, unit)
        came = self.place[changed] < 0
        new = changed[came]
        corner = np.zeros((len(changed),) * 2)
        corner[np.ix_(came, came)] = self.matrix[np.ix_(new, new)] * unit[new] * unit[new, None]
        corner[came, came] += _NEAR
        try:
            t = np.linalg.solve(corner - Z.T @ Z, whole[changed] - Z.T @ first)
        except np.linalg.LinAlgError:
            return None
        x = np.zeros_like(whole)
        x[self.base] = solve_lower(self.factor, first - Z @ t, lower=1, trans=1)[0]
        x[changed] = np.where(came, t, 0.0)
        left = whole - unit * (self.matrix @ (unit * x)) - _NEAR * x
        if not np.linalg.norm(left[at]) <= _EXACT * np.linalg.norm(whole):
            return None
        return (unit * x)[at]

    def _find_columns(self, changed: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Return ``Z`` of columns that came or left."""
        new = np.setdiff1d(changed, self.known)
        if len(new):
            base, C = self.base, np.zeros((len(self.base), len(new)), order="F")
            left = np.flatnonzero(self.place[new] >= 0)
            C[self.place[new[left]], left] = 1
            come = np.flatnonzero(self.place[new] < 0)
            block = self.matrix[np.ix_(base, new[come])]
            C[:, come] = block * unit[base, None] * unit[new[come]]
            self.Z = np.hstack([self.Z, solve_lower(self.factor, C, lower=1)[0]])
            self.known = np.append(self.known, new)
        order = np.argsort(self.known)
        return self.Z[:, order[np.searchsorted(self.known, changed, sorter=order)]]
