"""Which estimator is cheapest: error against gradients of six, from one measurement."""

import math
from dataclasses import replace

from bilevel.estimators import Forward
from bilevel.planning.comparison import Comparison, PricedRun
from bilevel.planning.planner import KINDS, Planner
from bilevel.planning.search import TANGENT
from bilevel.solvers import SAGA, SVRG

TOLERANCES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_SHARES = (1.0, 1 / 2, 1 / 3)  # step sizes of SVRG and SAGA, of 1 / L with L of single examples
_REDUCED = {"svrg": "SVRG, last iterate", "saga": "SAGA, last iterate"}


def compare_estimators(planner: Planner, tolerances: tuple[float, ...] = TOLERANCES) -> Comparison:
    """Return the cheapest run of every estimator for every tolerance."""
    found = {
        kind.name: tuple(_of_sgd(replace(planner, kind=key, known={}), tolerances))
        for key, kind in KINDS.items()
    }
    for name, title in _REDUCED.items():
        found[title] = _of_reduced(planner, name, tolerances)
    return Comparison(tolerances, found)


def _of_sgd(planner: Planner, tolerances: tuple[float, ...]) -> list[PricedRun]:
    settings = []
    for tolerance in tolerances:
        demand = planner.demand(tolerance)
        rows = [planner.find_best(size, demand) for size in planner.problem.limits]
        best = min(rows, key=lambda row: row.cost)
        if best.cost == math.inf:
            settings.append(PricedRun(None, math.nan, math.inf, best.verdict))
        else:
            settings.append(PricedRun(planner.build(best), best.error, best.cost))
    return settings


def _of_reduced(
    planner: Planner, name: str, tolerances: tuple[float, ...]
) -> tuple[PricedRun, ...]:
    """Return the first step from which the error is small, over the step sizes, in one run each."""
    problem = planner.problem.reduced
    why = ""
    if problem is None:
        why = "known for quadratic inner losses only, where its moments are exact"
    elif not problem.fits(name):
        why = "its exact moments are too large here"
    if problem is None or why:
        return tuple(PricedRun(None, math.nan, math.inf, why) for _ in tolerances)
    scale, p = planner.demand(tolerances[0]).scale, len(planner.problem.exact)
    stride, each = problem.stride(name), 1 + TANGENT * p
    # SVRG: two gradients a step, and a full one for every 2 m steps.
    price = each * (2.5 if name == "svrg" else 1.0)
    found = [
        PricedRun(None, math.nan, math.inf, "needs more than 20 000 or max_steps steps")
    ] * len(tolerances)
    for share in _SHARES:
        size = share / problem.largest
        target = min(tolerances) * scale
        errors = problem.errors(name, size, planner.max_steps, target) / scale
        for k, tolerance in enumerate(tolerances):
            above = [j for j, error in enumerate(errors) if not error <= tolerance]
            first = above[-1] + 1 if above else 0
            steps = (first + 1) * stride
            if first < len(errors) and steps * price < found[k].cost:
                solver = SVRG(size, 1) if name == "svrg" else SAGA(size, 1)
                run = Forward(solver, steps)
                found[k] = PricedRun(run, float(errors[first]), steps * price)
    return tuple(found)
