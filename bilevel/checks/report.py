"""What a check found, as data and as a table."""

from dataclasses import dataclass

import numpy as np

from bilevel.checks.cost import Cost
from bilevel.core import Evidence

_UNSOLVED = (
    "the inner problem is not solved (finite steps, or minibatch noise): take more steps, larger "
    "batches or smaller step sizes"
)


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
    verdict : the finding in words, with the likely cure.
    """

    name: str
    slopes: np.ndarray
    error: float
    evidence: Evidence | None
    cost: Cost | None
    agrees: bool
    verdict: str


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
    agrees : whether every row does.
    """

    rows: tuple[CheckRow, ...]
    value: float
    directions: np.ndarray
    reference: np.ndarray
    uncertainty: float

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
            f"{'estimator':<12} {'error':>8} {'residual':>9} {'adjoint':>8} "
            f"{'grads':>7} {'hvps':>6} {'jvps':>7} {'vjps':>7} {'ms':>8} {'MiB':>6}  verdict",
        ]
        return "\n".join([*lines, *map(_line, self.rows)])


def judge_estimator(
    name: str,
    slopes: np.ndarray,
    evidence: Evidence,
    reference: np.ndarray,
    doubt: float,
    tol: float,
) -> CheckRow:
    """Return one estimator's row: its error, and the likely cause if it is off."""
    scale = max(float(np.linalg.norm(reference)), np.finfo(float).tiny)
    error = float(np.linalg.norm(slopes - reference)) / scale
    inner, adjoint = (
        0.0 if r is None else float(r) for r in (evidence.inner_residual, evidence.linear_residual)
    )
    # An error of order tol is explained by a residual of order tol^2 already: both are relative,
    # and the residual acts through the condition number.
    causes = []
    if inner > tol**2:
        causes.append(_UNSOLVED)
    if adjoint > tol**2:
        causes.append("the adjoint system is not solved: lower its tol or raise max_steps")
    if not np.isfinite(error):
        verdict = "diverged: use a smaller step size"
    elif error <= tol:
        verdict = "agrees"
    elif doubt > tol:
        verdict = "undecided: the differences themselves are not certain to tol; change epsilon"
    elif inner > 1:
        verdict = "diverging: the inner residual is above its start; use a smaller step size"
    elif causes:
        verdict = "off: " + "; ".join(causes)
    else:
        verdict = (
            "wrong although everything is solved: is a loss not differentiable there, or does it "
            "use stop_gradient?"
        )
    return CheckRow(name, slopes, error, evidence, None, error <= tol, verdict)


def _line(row: CheckRow) -> str:
    if row.evidence is None or row.cost is None:
        return f"{row.name:<12} {'-':>8} {row.verdict}"
    inner, adjoint = (
        "-" if r is None else f"{float(r):.1e}"
        for r in (row.evidence.inner_residual, row.evidence.linear_residual)
    )
    gradients, hvps, jvps, vjps = (int(n) for n in row.evidence.counts)
    return (
        f"{row.name:<12} {row.error:>8.1e} {inner:>9} {adjoint:>8} "
        f"{gradients:>7} {hvps:>6} {jvps:>7} {vjps:>7} {1e3 * row.cost.seconds:>8.1f} "
        f"{row.cost.temp_bytes / 2**20:>6.2f}  {row.verdict}"
    )
