"""What a check found, as data and as a table."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bilevel.checks.cost import Cost
from bilevel.checks.growth import Growth
from bilevel.core import Estimate, Evidence

_UNSOLVED = (
    "the inner problem is not solved (finite steps, or minibatch noise): take more steps, larger "
    "batches or smaller step sizes"
)
_UNCONVERGED = (
    "the derivative of the iterates has not converged: take more steps, a larger step size or an "
    "implicit estimator"
)
_GROWN = "derivatives grow along the inner steps: truncate, take a smaller step size, or use PES"
_ALARM, _GOOD = 0.5, 0.05  # evidence that says more than this of an error below that is wrong
_SILENT = 10  # times the error that the evidence knows of
_ELSEWHERE = 0.1  # of the minimum's norm: with solved inner problems that is another minimum


class Place(NamedTuple):
    """A point of the inner loss: the norm of params, the loss, and the norm of its gradient."""

    norm: float
    loss: float
    gradient: float

    def __str__(self) -> str:
        """Return a phrase for people."""
        return f"|w| = {self.norm:.4g} (loss {self.loss:.6g}, |gradient| {self.gradient:.1e})"


class Measured(NamedTuple):
    """``slopes``, ``[m]``, of an ``estimate``, whose params ended so far from the minimum."""

    slopes: np.ndarray
    estimate: Estimate
    distance: float


@dataclass(frozen=True)
class CheckRow:
    """One estimator's answer.

    Parameters
    ----------
    name : as given, or the class's name.
    slopes : ``[m]``; its hypergradient along each direction.
    error : ``|slopes - reference| / |reference|``.
    evidence : what the estimator says about itself; ``None`` if it refused.
    cost : seconds of a warm call and of compilation, bytes; ``None`` if it refused.
    agrees : whether ``error`` is within the tolerance.
    verdict : the finding in words, with the likely cure, and whether its evidence agrees.
    known : ``estimate.relative_error``: what the estimator itself knows of ``error``.
    growth : how adjoints grow along the inner steps, of reverse mode.
    """

    name: str
    slopes: np.ndarray
    error: float
    evidence: Evidence | None
    cost: Cost | None
    agrees: bool
    verdict: str
    known: float = math.nan
    growth: Growth | None = None


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found; ``str(report)`` is a table.

    Parameters
    ----------
    rows : one :class:`CheckRow` per estimator.
    value : of the outer loss at the inner minimiser.
    directions : ``[m, p]``; orthonormal coordinates, or random unit vectors.
    reference : ``[m]``; central differences of the value function along each direction.
    uncertainty : relative change of ``reference`` when its step is halved.
    start, minimum : where inner solves start, and the minimum at which the differences were taken.
    distance : of the two, relative to the norm of the minimum.
    """

    rows: tuple[CheckRow, ...]
    value: float
    directions: np.ndarray
    reference: np.ndarray
    uncertainty: float
    start: Place
    minimum: Place
    distance: float

    @property
    def agrees(self) -> bool:
        """Return whether every estimator agrees with the reference."""
        return all(row.agrees for row in self.rows)

    def __str__(self) -> str:
        """Return the table."""
        m, p = self.directions.shape
        along = f"all {p} coordinates" if m == p else f"{m} random directions of {p} coordinates"
        lines = [
            f"value {self.value:.6g}; central differences along {along}, certain to "
            f"{self.uncertainty:.1e}",
            f"start {self.start}; minimum {self.minimum}, {self._apart()}",
            f"{'estimator':<12} {'error':>8} {'known':>8} {'residual':>9} {'adjoint':>8} "
            f"{'grads':>7} {'hvps':>6} {'jvps':>7} {'vjps':>7} {'ms':>8} {'MiB':>6}  verdict",
        ]
        grown = [f"{row.name}: {row.growth}" for row in self.rows if row.growth is not None]
        if grown:
            grown = ["will it differentiate?", *grown]
        return "\n".join([*lines, *map(_line, self.rows), *grown])

    def _apart(self) -> str:
        if self.distance < 1e-6:
            return "the same point: inner residuals say nothing of derivatives there"
        return f"{self.distance:.2g} of its norm away"


def judge_estimator(
    name: str, measured: Measured, reference: np.ndarray, doubt: float, tol: float
) -> CheckRow:
    """Return one estimator's row: its error, and the likely cause if it is off."""
    slopes, estimate, distance = measured
    evidence, known = estimate.evidence, float(estimate.relative_error)
    scale = max(float(np.linalg.norm(reference)), np.finfo(float).tiny)
    error = float(np.linalg.norm(slopes - reference)) / scale
    residuals = evidence.inner_residual, evidence.linear_residual, evidence.derivative_residual
    inner, adjoint, derivative = (0.0 if r is None else float(r) for r in residuals)
    # An error of order tol is explained by a residual of order tol^2 already: both are relative,
    # and the residual acts through the condition number.
    causes = []
    if inner > tol**2:
        causes.append(_UNSOLVED)
    if adjoint > tol**2:
        causes.append("the adjoint system is not solved: lower its tol or raise max_steps")
    if derivative > tol**2:
        causes.append(_UNCONVERGED if derivative <= 1 else _GROWN)
    if not np.isfinite(error):
        verdict = "diverged: use a smaller step size"
    elif error <= tol:
        verdict = "agrees"
    elif doubt > tol:
        verdict = "undecided: the differences themselves are not certain to tol; change epsilon"
    elif inner > 1:
        verdict = "diverging: the inner residual is above its start; use a smaller step size"
    elif distance > _ELSEWHERE and inner <= tol:
        verdict = (
            f"another minimum: its params end {distance:.2g} of the norm away from the one of the "
            "differences; start nearer to that one, or compare at this one"
        )
    elif causes:
        verdict = "off: " + "; ".join(causes)
    else:
        verdict = (
            "wrong although everything is solved: is a loss not differentiable there, or does it "
            "use stop_gradient?"
        )
    if math.isfinite(error) and doubt <= tol:
        verdict += _disagreement(error, estimate, known, tol)
    return CheckRow(name, slopes, error, evidence, None, error <= tol, verdict, known)


def _disagreement(error: float, estimate: Estimate, known: float, tol: float) -> str:
    """Return what is to be said where the estimator's own evidence contradicts the measured error.

    It is first-order: a number of the right size is all that is asked of it.
    """
    if known > _ALARM and error < _GOOD:
        return f"; false alarm: its own evidence says {known:.1e}"
    if error <= tol or known > _ALARM or known * _SILENT >= error:
        return ""
    missing = f", it did not measure the {' and the '.join(estimate.unknown)}"
    if math.isnan(known):
        return f"; silence: its own evidence says nothing{missing}"
    return f"; silence: its own evidence says {known:.1e}{missing if estimate.unknown else ''}"


def _line(row: CheckRow) -> str:
    if row.evidence is None or row.cost is None:
        return f"{row.name:<12} {'-':>8} {row.verdict}"
    known = "-" if math.isnan(row.known) else f"{row.known:.1e}"
    inner, adjoint = (
        "-" if r is None else f"{float(r):.1e}"
        for r in (row.evidence.inner_residual, row.evidence.linear_residual)
    )
    gradients, hvps, jvps, vjps = (int(n) for n in row.evidence.counts)
    return (
        f"{row.name:<12} {row.error:>8.1e} {known:>8} {inner:>9} {adjoint:>8} "
        f"{gradients:>7} {hvps:>6} {jvps:>7} {vjps:>7} {1e3 * row.cost.seconds:>8.1f} "
        f"{row.cost.temp_bytes / 2**20:>6.2f}  {row.verdict}"
    )
