"""All folds of a generalised linear model fitted at once, by truncated Newton.

Nocedal, Wright, Numerical Optimization, 2006, ch. 7. Each fit starts where the last ones ended.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bilevel.sklearn.losses.glm_folds import GlmFolds, dot_folds, norm_folds, sum_weighted
from bilevel.sklearn.losses.glm_system import SINGLE, GlmSystem
from bilevel.sklearn.losses.links import Link

_FLAT = 1e-12  # of the curvature at the start: that of the intercepts, where the data give none
_STEPS = 200  # at most
_SHORTEST = 0.1  # part of a step that went too far
# Decrements squared, relative to the loss: of an exact fit, and from which on rounding may end it.
EXACT, _ROUNDING = 1e-22, 1e-17


class GlmState(NamedTuple):
    """Coefficients ``w [d + 1, F, T]``, scores ``[n, F, T]``, gradient, inner losses ``[F]``.

    ``slope`` and ``curvature`` are those of the :class:`Link` at the scores, ``losses [n, F]`` too.
    """

    w: np.ndarray
    z: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    gradient: np.ndarray
    value: np.ndarray
    losses: np.ndarray


class GlmFits:
    """The fits of all folds; ``theta``: logarithms of penalties, ``[d, T]`` flattened, or one."""

    def __init__(self, link: Link, folds: GlmFolds) -> None:
        """Start at the constant model."""
        self.link, self.folds = link, folds
        self.w = np.zeros(folds.shape)
        start = link.start(folds.train[:, -1] @ folds.target[:, 0])
        if folds.intercept or link.plain:
            self.w[-1] = start
        mean = np.broadcast_to(start, folds.target.shape)
        curved = link.diagonal(link.derive(mean, folds.target)[1])
        self.curved = float(folds.train[:, -1] @ curved[:, 0])
        self.flat = _FLAT * self.curved
        # Of the last few: theta, the state there, and the weights of that time.
        self.known: list[tuple[np.ndarray, GlmState, np.ndarray]] = []
        self.system = GlmSystem(folds, link)
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
        folds = self.folds
        if self.link.profile is not None:
            best = self.link.profile(z, folds.target, folds.train)
            w, z = w.copy(), z.copy()
            w[-1, :, folds.sloped :] = z[:, :, folds.sloped :] = best
        losses = self.link.value(z, folds.target)
        value = sum_weighted(folds.train, losses) + dot_folds(strength * w, w) / 2
        slope, curvature = self.link.derive(z, folds.target)
        gradient = folds.back(folds.train[:, :, None] * slope) + strength * w
        return GlmState(w, z, slope, curvature, gradient, value, losses)

    def solve(
        self,
        theta: np.ndarray,
        tol: np.ndarray | float,
        enough: Callable[[GlmState, GlmState], bool] | None = None,
    ) -> tuple[GlmState, np.ndarray]:
        """Minimise the inner losses until the decrement squared is below ``tol`` of the loss.

        Or until the states before and after a step are ``enough``.
        """
        strength = self._strength(theta)
        at = self._start(theta, strength, bool(np.min(tol) <= EXACT))
        shortened = False
        done, self.system.single = np.zeros(len(at.value), bool), self.system.large
        for _ in range(_STEPS):
            self.first = max(self.first, float(np.max(norm_folds(at.gradient))))
            curvature = at.curvature
            if shortened and self.link.bound is not None:  # too little curvature to go by
                curvature = self.link.bound(at.z, self.folds.target)
            self.system.prepare(curvature, strength)
            size, least = self.system.measure(at.gradient), np.maximum(at.value, 1e-12)
            # As exactly as the end needs, but for what the loss is not quadratic.
            need, far = np.sqrt(tol * least / np.maximum(size, 1e-300)), np.sqrt(size / least)
            forcing = np.clip(np.maximum(need, far) / 2, SINGLE, 0.25)
            # Folds that are done rest, and cost nothing.
            right = np.where(done[:, None], 0, at.gradient)
            step, _ = self.system.solve(right, forcing)
            decrement = dot_folds(at.gradient, step)
            before, at = at, self._search_line(at, step, strength)
            moved = np.max(np.abs(at.w - before.w), (0, 2)) < 0.1 * np.max(np.abs(step), (0, 2))
            shortened = not shortened and bool(np.any(moved & ~done))
            ratio = np.minimum(self.system.measure(at.gradient) / np.maximum(size, 1e-300), 1)
            if np.any((ratio > 0.5) & ~done):
                self.system.single = False  # for now: rounding may be to blame
            least = np.maximum(at.value, 1e-12)
            done |= 4 * decrement * ratio <= tol * least
            done |= (decrement <= _ROUNDING * least) & (ratio > 0.25)
            if done.all() or (enough is not None and enough(before, at)):
                break
        self.w = at.w
        self.known = [*self.known[-2:], (theta, at, self.folds.train)]
        return at, strength

    def _search_line(self, at: GlmState, step: np.ndarray, strength: np.ndarray) -> GlmState:
        """Return the state after a step, shorter in the folds where it would go too far.

        Too far: the loss is higher, or rises more steeply than half as much as it fell at first.
        """
        fall, most, image = dot_folds(at.gradient, step), at.value, self.folds.product(step)
        length, new = np.ones(len(most)), at
        for _ in range(60):
            part = length[:, None]
            new = self._look(at.w - part * step, at.z - part * image, strength)
            rise = -dot_folds(new.gradient, step)
            if most is at.value and np.any(new.value > most):  # by rounding?
                scores = np.sum(self.folds.train * np.einsum("nft,nft->nf", at.z, at.z), 0)
                most = most + 1e-15 * (np.sqrt(scores) + most)
            far = (new.value > most) | (rise > fall / 2) & (fall > 1e-12 * at.value)
            if not far.any():
                break
            # The secant of the slopes; half at most, as the loss flattens behind, and not much
            # less, as the slope of an exponential says where it is, not where it comes from.
            part = np.fmin(fall / np.maximum(fall + rise, 1e-300), 0.5)
            length[far] *= np.maximum(part, _SHORTEST)[far]
        return new

    def _start(self, theta: np.ndarray, strength: np.ndarray, exactly: bool) -> GlmState:
        """Return the better of the nearest solution and the line through the two nearest."""
        known = [(at, state) for at, state, train in self.known if train is self.folds.train]
        known.sort(key=lambda pair: float(np.sum((pair[0] - theta) ** 2)))
        if not known or exactly:
            w = known[0][1].w if known else self.w
            return self._look(w, self.folds.product(w), strength)
        # Scores, and so the losses of the rows, are those of before; the penalty is not.
        near, here = known[0]
        change = (strength - self._strength(near)) * here.w
        value = here.value + dot_folds(change, here.w) / 2
        at = here._replace(gradient=here.gradient + change, value=value)
        if len(known) < 2:
            return at
        far, there = known[1]
        way = near - far
        part = float((theta - near) @ way) / max(float(way @ way), 1e-300)
        if part == 0 or abs(part) > 1.5:
            return at
        line, scores = here.w + part * (here.w - there.w), here.z + part * (here.z - there.z)
        guess = self._look(line, scores, strength)
        return guess if np.sum(guess.value) < np.sum(at.value) else at
