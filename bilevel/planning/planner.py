"""All candidates over batch sizes and step sizes, from one measurement of the problem."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from bilevel.core import Estimator
from bilevel.estimators import Forward, Implicit, Replicated
from bilevel.planning import reasons
from bilevel.planning.analysis import Analysis
from bilevel.planning.refusals import require_found, require_plan_tolerance
from bilevel.planning.report import Plan, Split
from bilevel.planning.scheme import Scheme
from bilevel.planning.search import TANGENT, Candidate, Demand, Predictor, Price, find_cheapest
from bilevel.utils import PyTree

_SHARES = tuple(2.0 ** (-k / 2) for k in range(28))  # step sizes, of the largest trusted one
MAX_NONLINEARITY = (
    0.1  # the mean's distance over the spread, above which moments are not linear theory's
)


class Kind(NamedTuple):
    """One way to read SGD: its ``name``, the averaging ``window`` where it is fixed, and more.

    ``reads`` says whose moments it has: one chain's, or with the outer gradient at another's, or
    the implicit hypergradient of the iterates alone.
    """

    name: str
    reads: str
    window: int | None = None


KINDS = {
    "last": Kind("last iterate", "forward", 1),
    "average": Kind("tail average", "forward"),
    "cross": Kind("tail average, cross-sampled", "cross"),
    "implicit": Kind("tail average, implicit", "implicit"),
}


@dataclass(frozen=True)
class Planner:
    """Everything but the tolerance; asked again with another one it only searches.

    Parameters
    ----------
    problem : what is known of it.
    to_hyper : ``[p] -> `` a tree like hyper; ``params``, the inner solution.
    count : inner examples.
    step_size, replicas, max_steps, budget : as for :func:`bilevel.plan`.
    scheme : SGD but for its step size and batch size.
    kind : of :data:`KINDS`, the estimator that is planned for.
    """

    problem: Analysis
    to_hyper: Callable[[np.ndarray], PyTree]
    params: PyTree
    count: int
    step_size: float | None
    replicas: int | None
    max_steps: int
    budget: float
    scheme: Scheme
    kind: str = "average"
    known: dict[tuple[float, int | None], Predictor] = field(default_factory=dict)

    @property
    def mu(self) -> float:
        """Return the momentum."""
        return self.scheme.mu

    def plan(self, tolerance: float) -> Plan:
        """Return the cheapest candidate over all batch sizes.

        Raises
        ------
        ValueError : a tolerance outside (0, 1), or one that no candidate meets.
        """
        require_plan_tolerance(tolerance)
        demand = self.demand(tolerance)
        rows = tuple(self.find_best(batch_size, demand) for batch_size in self.problem.limits)
        best = min(rows, key=lambda row: row.cost)
        require_found(rows, best, tolerance, self.budget, self.max_steps)
        return self._report(best, rows, demand)

    def demand(self, tolerance: float) -> Demand:
        """Return what is asked for, and the price of the estimator."""
        n, p = len(self.problem.solution), len(self.problem.exact)
        price = {
            "forward": Price(1.0, 1 + TANGENT * p),
            "cross": Price(2.0, 2 + TANGENT * p),
            # Conjugate gradients in n products at most, and the cross term, on all examples.
            "implicit": Price(1.0, 1.0, self.count * (TANGENT * n + 1)),
        }[KINDS[self.kind].reads]
        scale, window = float(np.linalg.norm(self.problem.exact)), KINDS[self.kind].window
        return Demand(tolerance, scale, price, self.replicas, self.max_steps, window)

    def build(self, best: Candidate) -> Estimator:
        """Return the candidate as an estimator."""
        # A window of one step is the last iterate, which is returned without averaging.
        average = best.window if best.window > 1 else 0
        solver = self.scheme.make_solver(best.step_size, best.batch_size)
        estimator: Estimator
        if KINDS[self.kind].reads == "implicit":
            estimator = Implicit(solver, best.steps, average=average)
        else:
            cross = KINDS[self.kind].reads == "cross"
            where = {"start": best.start, "average": average, "cross": cross}
            estimator = Forward(solver, best.steps, **where)
        return Replicated(estimator, best.replicas) if best.replicas > 1 else estimator

    def _run(self, step_size: float, batch_size: int | None) -> Predictor:
        at = (step_size, batch_size)
        if at not in self.known:
            self.known[at] = self.problem.predict(*at, KINDS[self.kind].reads)
        return self.known[at]

    def find_best(self, batch_size: int | None, demand: Demand) -> Candidate:
        """Return the best over step sizes.

        From the largest down while a smaller one saves a twentieth.
        """
        trusted = self.problem.trusted[batch_size]
        fixed, best, worse = self.step_size, Candidate(batch_size), 0
        if fixed is not None and fixed > trusted:
            return replace(best, verdict=reasons.too_large(fixed, trusted))
        for step_size in [trusted * share for share in _SHARES] if fixed is None else [fixed]:
            empty, run = Candidate(batch_size, step_size), self._run(step_size, batch_size)
            if run.nonlinearity > MAX_NONLINEARITY:
                found = replace(
                    empty, verdict="the loss is not quadratic within the spread of the iterates"
                )
            else:
                found = find_cheapest(run, demand, batch_size or self.count, empty)
            better = found.cost < 0.95 * best.cost or best.cost == math.inf
            best, worse = (found, 0) if better else (best, worse + 1)
            if worse == 3:
                break
        if best.cost < math.inf:
            total = self._error(best)[0]
            best = replace(best, error=total / demand.scale)
        return best

    def _error(self, of: Candidate) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return root mean square.

        Bias, transient, noise, and noise of one iterate, ``[p]`` each.
        """
        run = self._run(of.step_size, of.batch_size)
        (bias, variance), transient = run.stationary_error(of.window), run.transient(*of.lengths)
        noise, iterate = np.sqrt(variance / of.replicas), np.sqrt(run.stationary_error(1)[1])
        total = float(np.sqrt(np.sum((bias + transient) ** 2) + np.sum(noise**2)))
        return total, bias, transient, noise, iterate

    def _report(self, best: Candidate, rows: tuple[Candidate, ...], demand: Demand) -> Plan:
        _, bias, transient, noise, iterate = self._error(best)
        sizes = (float(np.linalg.norm(x)) for x in (bias, noise, transient, iterate))
        split = Split(best.error, *(size / demand.scale for size in sizes))
        return Plan(
            estimator=self.build(best),
            tolerance=demand.tolerance,
            error=split,
            bias=self.to_hyper(bias + transient),
            standard_error=self.to_hyper(noise),
            exact=self.to_hyper(self.problem.exact),
            params=self.params,
            chosen=best,
            limit=self.problem.limits[best.batch_size],
            curvature=self.problem.curvature,
            alternatives=rows,
            route=self.problem.route,
            reasons=reasons.explain_plan(
                self, best, rows, split, self._run(best.step_size, best.batch_size)
            ),
            settings=self.scheme.describe(),
            planner=self,
        )
