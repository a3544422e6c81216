r"""Cross-validation loss of a penalised linear model, by implicit differentiation of every fold.

    inner = sum_i s_i loss(x_i . w + b, y_i) + 1/2 sum_j e^{theta_j} w_j^2
    outer = sum_i v_i loss(x_i . w + b, y_i) / sum_i v_i,   the mean over folds
    H a = grad_w outer,   d outer / d theta_j = -e^{theta_j} w_j a_j

Truncated Newton with conjugate gradients (Nocedal, Wright, Numerical Optimization, 2006, ch. 7),
all folds in the same products with the rows, so these are read once. The preconditioner is one for
all folds: the Hessian of their mean, factorised, where columns are few; else its diagonal. The
value has the first-order correction ``-a . gradient``, so its error is of the second order in that
of the inner solution.
"""

from typing import NamedTuple

import numpy as np

from bilevel.sklearn.losses.glm_folds import GlmFolds
from bilevel.sklearn.losses.links import Link
from bilevel.sklearn.losses.preconditioner import Preconditioner
from bilevel.sklearn.search.descent import Evaluation

_FLAT = 1e-12  # of the curvature at the start: that of the intercepts, where the data give none
_STEPS, _PRODUCTS = 60, 300  # of Newton's method, and of conjugate gradients in each, at most
# Decrements squared, relative to the loss, at which Newton ends: at the end, along a descent and on
# the grid; and residuals of the adjoint at the first two.
EXACT, _FINE, _COARSE = 1e-14, 1e-8, 1e-5
_LINEAR, _FORCING = 1e-9, 1e-4
_SLACK = 6  # products of a solve that no preconditioner saves


class GlmState(NamedTuple):
    """Coefficients ``w [d + 1, F, T]``, scores ``[n, F, T]``, gradient, inner losses ``[F]``.

    ``slope`` and ``curvature`` are those of the :class:`Link` at the scores.
    """

    w: np.ndarray
    z: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    gradient: np.ndarray
    value: np.ndarray


class GlmLoss:
    """The mean over folds; ``theta``: logarithms of the penalties, ``[d, T]`` flattened, or one.

    Each call starts where the last one ended.
    """

    def __init__(self, link: Link, folds: GlmFolds) -> None:
        """Start at the constant model."""
        self.link, self.folds = link, folds
        self.w = np.zeros(folds.shape)
        if folds.intercept or link.plain:
            self.w[-1] = link.start(folds.train[:, -1] @ folds.target[:, 0])
        mean = np.broadcast_to(
            link.start(folds.train[:, -1] @ folds.target[:, 0]), folds.target.shape
        )
        curved = link.diagonal(link.derive(mean, folds.target)[1])
        self.flat = _FLAT * float(folds.train[:, -1] @ curved[:, 0])
        self.known: list[tuple[np.ndarray, np.ndarray]] = []  # theta and w, the last few
        self.last: tuple[np.ndarray, Evaluation] | None = None
        self.adjoint = np.zeros(folds.shape)
        self.precondition = Preconditioner(folds, link)
        self.first = 0.0

    def _strength(self, theta: np.ndarray) -> np.ndarray:
        """Return the penalty of every coefficient per unit of training weight."""
        d, outputs = self.folds.shape[0], self.folds.sloped
        penalty = np.exp(theta)
        grid = np.broadcast_to(
            penalty if len(penalty) == 1 else penalty.reshape(d - 1, -1), (d - 1, outputs)
        )
        strength = np.full(self.folds.shape, self.flat)
        strength[:-1, :, :outputs] = grid[:, None, :] / self.folds.size[None, :, None]
        return strength

    def _look(self, w: np.ndarray, z: np.ndarray, strength: np.ndarray) -> GlmState:
        """Return the state at ``w``, scores without columns at their best for the others."""
        if self.link.profile is not None:
            best, sloped = (
                self.link.profile(z, self.folds.target, self.folds.train),
                self.folds.sloped,
            )
            w, z = w.copy(), z.copy()
            w[-1, :, sloped:] = z[:, :, sloped:] = best
        value = _weigh(self.folds.train, self.link.value(z, self.folds.target))
        value = value + _dot(strength * w, w) / 2
        slope, curvature = self.link.derive(z, self.folds.target)
        gradient = self.folds.back(self.folds.train[:, :, None] * slope) + strength * w
        return GlmState(w, z, slope, curvature, gradient, value)

    def solve(self, theta: np.ndarray, tol: float) -> tuple[GlmState, np.ndarray]:
        """Minimise the inner losses until the decrement squared is below ``tol`` of the loss."""
        strength = self._strength(theta)
        at = self._start(theta, strength)
        self.first = max(self.first, float(np.max(_norm(at.gradient))))
        for _ in range(_STEPS):
            self.precondition.prepare(at.curvature, strength)
            rate = float(np.max(_norm(at.gradient))) / max(self.first, 1e-300)
            step, image, _ = self._solve_system(at, strength, at.gradient, min(0.1, rate**0.5))
            decrement = _dot(at.gradient, step)
            done = decrement <= tol * np.maximum(at.value, 1e-12)
            rounding = 1e-15 * np.sqrt(
                np.sum(self.folds.train * np.einsum("nft,nft->nf", at.z, at.z), 0)
            )
            length, new = np.ones(len(decrement)), at
            for _ in range(60):
                new = self._look(
                    at.w - length[:, None] * step, at.z - length[:, None] * image, strength
                )
                worse = new.value > at.value + rounding + 1e-15 * at.value
                if not worse.any():
                    break
                length[worse] /= 2
            at = new
            if done.all():
                break
        self.w = at.w
        self.known = [*self.known[-2:], (theta, at.w)]
        return at, strength

    def _start(self, theta: np.ndarray, strength: np.ndarray) -> GlmState:
        """Return the better of the last solution and the line through the two that are nearest."""
        last = self._look(self.w, self.folds.product(self.w), strength)
        known = sorted(self.known, key=lambda pair: float(np.sum((pair[0] - theta) ** 2)))
        if len(known) < 2:
            return last
        (near, w), (far, other) = known[:2]
        way = near - far
        part = float((theta - near) @ way) / max(float(way @ way), 1e-300)
        if part == 0 or abs(part) > 1.5:
            return last
        line = w + part * (w - other)
        guess = self._look(line, self.folds.product(line), strength)
        return guess if np.sum(guess.value) < np.sum(last.value) else last

    def _solve_system(
        self,
        at: GlmState,
        strength: np.ndarray,
        right: np.ndarray,
        tol: float,
        start: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Solve ``H x = right`` in every fold: ``x``, its scores, the largest relative residual."""

        def multiply(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            image = self.folds.product(x)
            curved = self.link.curved(at.curvature, image)
            curved *= self.folds.train[:, :, None]
            return self.folds.back(curved) + strength * x, image

        size = np.maximum(_norm(right), 1e-300)
        x, image, r = np.zeros_like(right), np.zeros_like(at.z), right
        if start is not None:
            product, image = multiply(start)
            x, r = start.copy(), right - product
        p, rho = np.zeros_like(right), np.ones(len(size))
        for k in range(_PRODUCTS):
            active = _norm(r) > tol * size
            if not active.any():
                break
            s = self.precondition(r)
            new = _dot(r, s)
            p = s + np.where(k > 0, new / rho, 0)[:, None] * p
            rho = np.where(new > 0, new, 1)
            product, direction = multiply(p)
            curvature = _dot(p, product)
            length = np.where(
                active & (curvature > 0), new / np.where(curvature > 0, curvature, 1), 0
            )
            x = x + length[:, None] * p
            image = image + length[:, None] * direction
            r = r - length[:, None] * product
            self.precondition.wasted += 1 / _SLACK if k < _SLACK else 1
        return x, image, float(np.max(_norm(r) / size))

    def evaluate_grid(self, grid: np.ndarray) -> np.ndarray:
        """Return the losses ``[G, F]`` of the folds, coarsely, from the strongest penalties on.

        Ends where it has risen for two points by a twentieth: weaker penalties take longest.
        """
        share, values = self.folds.share, np.full(len(grid), np.inf)
        losses = np.full((len(grid), len(share)), np.inf)
        for i, theta in enumerate(grid):
            at, _ = self.solve(theta, _COARSE)
            losses[i] = _weigh(self.folds.held, self.link.value(at.z, self.folds.target))
            values[i] = share @ losses[i]
            best = np.min(values[: i + 1])
            if i > 1 and values[i] > values[i - 1] > 1.05 * best:
                break
        return losses[:, share > 0]

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits, as exactly as a descent needs."""
        if self.last is None or not np.array_equal(self.last[0], theta):
            self.last = np.array(theta), self._evaluate(theta, _FINE, _FORCING)
        return self.last[1]

    def evaluate_exactly(self, theta: np.ndarray) -> Evaluation:
        """Return value, gradient and fits up to rounding."""
        return self._evaluate(theta, EXACT, _LINEAR)

    def _evaluate(self, theta: np.ndarray, tol: float, residual: float) -> Evaluation:
        at, strength = self.solve(theta, tol)
        right = self.folds.back(self.folds.held[:, :, None] * at.slope)
        adjoint, _, linear = self._solve_system(at, strength, right, residual, self.adjoint)
        self.adjoint = adjoint
        losses = _weigh(self.folds.held, self.link.value(at.z, self.folds.target))
        losses = losses - _dot(adjoint, at.gradient)
        share = self.folds.share
        part = (strength * at.w * adjoint)[:-1, :, : self.folds.sloped]
        grad = -np.einsum("f,dft->dt", share, part)
        grad = np.array([grad.sum()]) if len(theta) == 1 else grad.ravel()
        params = np.moveaxis(at.w, 1, 0)
        inner = float(np.max(_norm(at.gradient))) / max(self.first, 1e-300)
        return Evaluation(float(share @ losses), grad, losses, params, inner, linear, share)


def _weigh(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the weighted sums over the rows, ``[F]``; a row of weight 0 may be infinite."""
    return np.sum(weight * np.where(weight > 0, values, 0), 0)


def _norm(x: np.ndarray) -> np.ndarray:
    """Return the norm of every fold's part, ``[F]``."""
    return np.sqrt(_dot(x, x))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner product of every fold's parts, ``[F]``."""
    return np.einsum("dft,dft->f", a, b)
