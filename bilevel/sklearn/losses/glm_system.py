r"""Systems with the Hessian of every fold of a generalised linear model, by conjugate gradients.

Nocedal, Wright, Numerical Optimization, 2006, ch. 5. All folds are in the same products with the
rows, so these are read once; a fold leaves them as soon as it is solved. In single precision, at
half the price, as far as what is asked allows it and what comes out bears it out.
"""

from collections.abc import Callable

import numpy as np

from bilevel.sklearn.losses.glm_folds import GlmFolds, dot_folds, norm_folds
from bilevel.sklearn.losses.links import MULTINOMIAL, Link
from bilevel.sklearn.losses.preconditioner import Preconditioner

_PRODUCTS = 300  # in each system, at most
_SLACK = 6  # products of a solve that no preconditioner saves
SINGLE = 1e-3  # relative residual down to which single precision will do
_SOME = 0.5  # relative residual of a step that was solved at all
LARGE = 1_000_000  # multiplications of a product with the rows from which on it pays
_RANGE = 1e-12, 1e12  # of the largest entry of X: there single precision holds squares and products


class GlmSystem:
    """Solves ``H x = right`` in every fold, for the curvature and the penalties of the time."""

    def __init__(self, folds: GlmFolds, link: Link) -> None:
        """Nothing is known yet."""
        self.folds, self.link = folds, link
        self.precondition = Preconditioner(folds, link)
        large = folds.X.size * folds.shape[1] * folds.shape[2] >= LARGE
        self.large = bool(large and _RANGE[0] <= abs(folds.X).max() <= _RANGE[1])
        self.single = self.large  # until it fails

    def prepare(self, curvature: np.ndarray, strength: np.ndarray) -> None:
        """Take the curvature of a :class:`Link` and penalties ``[d + 1, F, T]``."""
        self.curvature, self.strength = curvature, strength
        # Of several classes, coefficients that have no penalty may all grow by one number, and
        # rounding would choose it.
        none = strength.max((1, 2)) <= strength[-1].max()
        self.undecided = np.flatnonzero(none & (self.link is MULTINOMIAL))
        self.precondition.prepare(curvature, strength)

    def measure(self, gradient: np.ndarray) -> np.ndarray:
        """Return about the decrement squared of every fold, ``[F]``."""
        return dot_folds(gradient, self.precondition(gradient, np.arange(gradient.shape[1])))

    def solve(
        self, right: np.ndarray, tol: np.ndarray | float, start: np.ndarray | None = None
    ) -> tuple[np.ndarray, float]:
        """Return ``x [d + 1, F, T]`` up to relative residuals ``tol``, and the largest of them.

        ``tol`` is one or ``[F]``; from ``start`` or 0 on.
        """
        if self.single:
            with np.errstate(over="ignore", invalid="ignore"):
                x, worst = self._solve_single(right, tol, start)
            if np.isfinite(worst):
                return x, worst
            self.single = False
        return self._iterate(right, tol, start, np.float64)

    def _solve_single(
        self, right: np.ndarray, tol: np.ndarray | float, start: np.ndarray | None
    ) -> tuple[np.ndarray, float]:
        """Solve in single precision, or return infinity where that has no numbers for it."""
        if start is None:  # a step, after which its maker sees the slope, in double precision
            x, worst = self._iterate(right, np.maximum(tol, SINGLE), None, np.float32)
            return x, worst if worst <= _SOME else np.inf
        every = np.arange(right.shape[1])
        x, size, before, dtype = start, norm_folds(right), np.inf, np.float32
        while True:
            r = right - self._restrict(every, dtype)(x.astype(dtype))
            left = norm_folds(r)
            if dtype == np.float32:  # seen to be solved in double precision only
                left, dtype = np.maximum(left, 2 * tol * size), np.float64
            worst = float(np.max(left / np.maximum(size, 1e-300)))
            if np.all(left <= tol * size):
                return x, worst
            if not np.isfinite(worst):
                return x, np.inf
            if worst > before / 10:
                self.single = self.large = False
                return self._iterate(right, tol, x, np.float64)
            before = worst
            part = np.clip(tol * size / np.maximum(left, 1e-300) / 2, SINGLE, 1)
            x = x + self._iterate(r, part, None, np.float32)[0]

    def _iterate(
        self, right: np.ndarray, tol: np.ndarray | float, start: np.ndarray | None, dtype: type
    ) -> tuple[np.ndarray, float]:
        size = norm_folds(right)
        x = np.zeros_like(right)
        most, left = tol * size, size.copy()
        live = np.flatnonzero(size > 0)
        multiply = self._restrict(live, dtype)
        r = right[:, live]
        if start is not None:
            x[:, live] = start[:, live]
            r = r - multiply(x[:, live])
        # In units of the right-hand side, so that single precision neither over- nor underflows.
        unit = size[live, None]
        r = (r / unit).astype(dtype)
        y, p, rho = np.zeros_like(r), np.zeros_like(r), np.ones(len(live), dtype)
        for k in range(_PRODUCTS):
            left[live] = norm_folds(r) * unit[:, 0]
            going = left[live] > most[live]
            if not going.all():
                x[:, live] += unit * y
                live, unit, rho = live[going], unit[going], rho[going]
                r, p = r[:, going], p[:, going]
                y, multiply = np.zeros_like(r), self._restrict(live, dtype)
            if not len(live):
                break
            s = self.precondition(r, live)
            new = dot_folds(r, s)
            p = s + (new / rho if k else 0 * new)[:, None] * p
            rho = np.where(new > 0, new, 1)
            product = multiply(p)
            curvature = dot_folds(p, product)
            good = curvature > 0
            if not good.any():  # rounding is all that is left
                break
            length = np.where(good, new / np.where(good, curvature, 1), 0)[:, None]
            y += length * p
            r = r - length * product
            self.precondition.wasted += 1 / _SLACK if k < _SLACK else 1
        x[:, live] += unit * y
        x[self.undecided] -= x[self.undecided].mean(2, keepdims=True)
        return x, float(np.max(left / np.maximum(size, 1e-300)))

    def _restrict(self, live: np.ndarray, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
        """Return the product with the Hessians of the folds ``live``."""
        every: np.ndarray | slice = live if len(live) < len(self.folds.share) else slice(None)
        parts = (self.curvature, self.strength, self.folds.train[:, :, None])
        curvature, penalty, train = (part[:, every].astype(dtype, copy=False) for part in parts)
        if dtype == np.float32:  # a held-out row of a large score may have no number there
            curvature = np.where(train > 0, curvature, 0)

        def multiply(x: np.ndarray) -> np.ndarray:
            curved = self.link.curved(curvature, self.folds.product(x))
            curved *= train
            return self.folds.back(curved) + penalty * x

        return multiply
