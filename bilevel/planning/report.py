"""What a plan says, as data and as a table with reasons."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from bilevel.core import Estimator
from bilevel.planning.comparison import Comparison
from bilevel.planning.search import Candidate
from bilevel.utils import PyTree


class Split(NamedTuple):
    """Predicted errors over the size of the hypergradient, Euclidean norms over all of hyper.

    ``total``, the root mean square over runs, of the stationary ``bias``, ``noise`` (standard
    deviation) and what is left of the start, ``transient``; ``iterate``: the noise of one iterate.
    """

    total: float
    bias: float
    noise: float
    transient: float
    iterate: float


class MakesPlans(Protocol):
    """What makes plans of one problem."""

    def plan(self, tolerance: float) -> "Plan":
        """Return the cheapest plan that meets a tolerance."""
        ...


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` proposes; ``str(plan)`` is a table with reasons.

    Parameters
    ----------
    estimator : ready to use: ``Forward(SGD(...), ...)``, replicated if that was asked for.
    tolerance : what was asked for; ``error``: what is predicted, a :class:`Split`.
    bias, standard_error : like hyper, of one estimate, as in :class:`Evidence`.
    exact : like hyper, the hypergradient at the solution; ``params``, the solution.
    chosen, alternatives : the plan, and the best of every batch size (:class:`Candidate`).
    limit : of the step size in mean square; ``curvature``: smallest and largest, at the solution.
    route : ``"dense"`` or ``"influence"``, how the moments were found.
    reasons : sentences.
    settings : the momentum and the sampling that were asked for, as they stand in a call of SGD.
    comparison : with other estimators, if that was asked for.
    """

    estimator: Estimator
    tolerance: float
    error: Split
    bias: PyTree
    standard_error: PyTree
    exact: PyTree
    params: PyTree
    chosen: Candidate
    limit: float
    curvature: tuple[float, float]
    alternatives: tuple[Candidate, ...]
    route: str
    reasons: tuple[str, ...]
    settings: str
    planner: MakesPlans = field(repr=False)
    comparison: Comparison | None = None

    @property
    def cost(self) -> float:
        """Return gradients of single examples, a tangent of one example counted as two."""
        return self.chosen.cost

    def at(self, tolerance: float) -> "Plan":
        """Return the plan for another tolerance, from the same measurements.

        Nothing is compiled.
        """
        return replace(self.planner.plan(tolerance), comparison=self.comparison)

    def __str__(self) -> str:
        """Return the table and the reasons."""
        best, error, (low, high) = self.chosen, self.error, self.curvature
        lines = [
            f"relative error {error.total:.3g} (asked: {self.tolerance:.3g}) for {best.cost:.3g} "
            "gradients of single examples",
            f"  {_call(best, self.settings)}",
            f"  bias {error.bias:.2g}, noise {error.noise:.2g}, start {error.transient:.2g}; inner "
            f"curvature {low:.3g} to {high:.3g}; step size {best.step_size / self.limit:.2g} of "
            f"its limit {self.limit:.3g}",
            "",
            f"{'batch':>6} {'step size':>10} {'steps':>8} {'start':>7} {'average':>8} "
            f"{'copies':>6} {'error':>7} {'cost':>8}",
            *(_line(row, row == best) for row in self.alternatives),
            "",
            *(f"* {reason}" for reason in self.reasons),
        ]
        if self.comparison is not None:
            lines += ["", "gradients of single examples by estimator (* the fewest)"]
            lines.append(str(self.comparison))
        return "\n".join(lines)


def _call(best: Candidate, settings: str) -> str:
    batch = "" if best.batch_size is None else f", batch_size={best.batch_size}"
    average = f", average={best.window}" if best.window > 1 else ""
    text = (
        f"Forward(SGD(step_size={best.step_size:.4g}{batch}{settings}), steps={best.steps}, "
        f"start={best.start}{average})"
    )
    return text if best.replicas == 1 else f"Replicated({text}, n={best.replicas})"


def _line(row: Candidate, chosen: bool) -> str:
    if row.verdict:
        return f"{row.batch:>6} {'-':>10}  {row.verdict}"
    return (
        f"{row.batch:>6} {row.step_size:>10.3g} {row.steps:>8} {row.start:>7} "
        f"{row.window:>8} {row.replicas:>6} {row.error:>7.3g} {row.cost:>8.2g}"
        + ("  <- chosen" if chosen else "")
    )
