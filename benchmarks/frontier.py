"""Error against time: seconds to a relative hypergradient error of 1e-1, 1e-3 and 1e-6.

    python -m benchmarks.frontier [--cases ridge digits weights] [--plot frontier.png]

Every candidate is run at several budgets in float64; its error is measured against the implicit
hypergradient of the fully solved problem, its time is the best warm call from a cold start.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import bilevel as bl
from benchmarks.problems import CASES, Case
from benchmarks.timing import clock

TARGETS = (1e-1, 1e-3, 1e-6)
TOLERANCES = (1e-1, 1e-4, 1e-8)  # of the adjoint system
QUASI_NEWTON = (5, 10, 20, 40, 80, 160)
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Point:
    """One budget of one candidate."""

    family: str
    budget: str
    error: float
    seconds: float
    first: float


def ours(case: Case) -> Iterator[tuple[str, str, Any]]:
    """``(family, budget, estimator)``."""
    sgd = bl.SGD(case.step_size, case.batch)
    if case.problem.quadratic:
        yield "ClosedForm", "", bl.ClosedForm()
    for k in (300, 1000, 3000):
        yield "Reverse, SGD", f"{k} steps", bl.Reverse(sgd, k)
        yield "Implicit, SGD", f"{k} steps", bl.Implicit(sgd, k, bl.CG(tol=1e-2))
        if k <= 1000 and case.name != "many_weights":
            yield "Forward, SGD", f"{k} steps", bl.Forward(sgd, k, average=k // 2)
    for tol in TOLERANCES:
        for n in (1, 2, 3, 5, 8):
            newton = bl.Newton(bl.CG(tol=max(tol, 1e-2)))
            yield "Implicit, Newton", f"{n} steps, {tol}", bl.Implicit(newton, n, bl.CG(tol=tol))
        for n in QUASI_NEWTON:
            lbfgs = bl.Implicit(bl.LBFGS(), n, bl.CG(tol=tol))
            yield "Implicit, L-BFGS", f"{n} steps, {tol}", lbfgs


def peers(case: Case) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """``(family, budget, call)`` for JAXopt, differentiated as its users would."""
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

    problem, data = case.problem, case.data

    def gradient(solver: Any) -> Callable[[], Any]:
        def value(hyper: Any, params: Any, data: bl.Data) -> jax.Array:
            w = solver.run(params, hyper, data.inner).params
            return problem.outer(w, hyper, data.outer)

        run = jax.jit(jax.grad(value))
        return lambda: run(case.hyper, case.params, data)

    def cg(tol: float) -> Callable:
        def solve(matvec: Any, b: Any, **_: Any) -> Any:
            return jax.scipy.sparse.linalg.cg(matvec, b, tol=tol, maxiter=1000)[0]

        return solve

    for tol in TOLERANCES:
        for n in QUASI_NEWTON:
            solver = jaxopt.LBFGS(
                problem.inner, maxiter=n, tol=1e-12, implicit_diff=True, implicit_diff_solve=cg(tol)
            )
            yield "JAXopt L-BFGS, implicit", f"{n} steps, {tol}", gradient(solver)
    for n in (100, 1000):
        solver = jaxopt.GradientDescent(problem.inner, maxiter=n, tol=0.0, implicit_diff=False)
        yield "JAXopt GD, unrolled", f"{n} steps", gradient(solver)


def measure(case: Case, repeats: int) -> list[Point]:
    """Error and time of every candidate."""
    exact = bl.Implicit(bl.Newton(bl.CG(tol=1e-13)), 30, bl.CG(tol=1e-13))
    args = (case.hyper, case.params, case.data, KEY)
    truth, _ = bl.hypergradient(case.problem, exact, *args)
    reference = ravel_pytree(truth.grad)[0]

    def point(family: str, budget: str, call: Callable[[], Any], grad: Callable) -> Point:
        first = clock(call)
        seconds = min(clock(call) for _ in range(repeats))
        g = ravel_pytree(grad(call()))[0]
        error = jnp.linalg.norm(g - reference) / jnp.linalg.norm(reference)
        return Point(family, budget, float(error), seconds, first)

    points = []
    for family, budget, estimator in ours(case):
        points.append(
            point(
                family,
                budget,
                lambda e=estimator: bl.hypergradient(case.problem, e, *args),
                lambda out: out[0].grad,
            )
        )
    for family, budget, call in peers(case):
        points.append(point(family, budget, call, lambda out: out))
    return points


def table(name: str, points: list[Point]) -> str:
    """Per family: the least milliseconds to each target error, the longest first call."""
    heads = " | ".join(f"ms to {t:.0e}" for t in TARGETS)
    lines = [f"### {name}", "", f"| candidate | {heads} | best error | compile, s |"]
    lines.append("|---|" + "---:|" * (len(TARGETS) + 2))
    for family in dict.fromkeys(p.family for p in points):
        mine = [p for p in points if p.family == family]
        cells = []
        for target in TARGETS:
            reached = [p.seconds for p in mine if p.error <= target]
            cells.append(f"{1e3 * min(reached):.1f}" if reached else "-")
        best = min(p.error for p in mine)
        first = max(p.first for p in mine)
        lines.append(f"| {family} | {' | '.join(cells)} | {best:.1e} | {first:.1f} |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, list[Point]], path: str) -> None:
    """One panel per problem: error against time, one line per candidate."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    for axis, (name, points) in zip(axes[0], results.items(), strict=True):
        for family in dict.fromkeys(p.family for p in points):
            mine = sorted((p for p in points if p.family == family), key=lambda p: p.seconds)
            style = "--" if family.startswith("JAXopt") else "-"
            axis.loglog(
                [p.seconds for p in mine], [p.error for p in mine], style, marker=".", label=family
            )
        axis.set(title=name, xlabel="seconds", ylabel="relative error of the hypergradient")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print one table per problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", help="write the picture here")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    results = {}
    for name in args.cases:
        results[name] = measure(CASES[name](), args.repeats)
        print(table(name, results[name]), flush=True)
        jax.clear_caches()
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
