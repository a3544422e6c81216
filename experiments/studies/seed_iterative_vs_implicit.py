r"""Stochastic iterative against stochastic implicit differentiation at equal oracle calls.

Iterative: ``Forward``, the derivative of SGD with the minibatches of SGD. Implicit: SGD, then SGD on
the linear system with fresh minibatches, as many steps each. At one hyperparameter both take two
calls a step. At p of them ``Forward`` takes 1 + p, ``Reverse`` and ``Implicit`` still two.

Leading order, tail averages over N steps on a quadratic: with ``a = H^-1 (grad outer)`` the adjoint,
both carry the noise ``a.g_i`` of the iterate through the outer curvature and ``a.(H_i D* + C_i)`` of
the derivative; iterative differentiation adds the two before it squares (same examples), implicit
after (independent ones; and its C reads all data). Neither has to win: the correlation decides.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from experiments.studies import seed_measure as measure
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet

STEPS = (0.8, 0.2, 0.05)  # step sizes, over 1 / (largest curvature of one example)


@dataclass(frozen=True)
class Sizes:
    """Budgets in gradients of single examples, runs per point, p of the third case, data sets."""

    calls: tuple[int, ...] = (1_000, 4_000, 16_000)
    runs: int = 400
    many: int = 8
    data_sets: int = 6


FULL = Sizes()
QUICK = Sizes(calls=(1_000, 4_000), runs=100, many=4, data_sets=2)

NAMES = {
    "forward, last": "iterative (forward), last iterate",
    "forward, tail": "iterative (forward), tail average",
    "implicit, last": "implicit (SGD + SGD), last iterates",
    "implicit, tail": "implicit (SGD + SGD), tail averages",
    "implicit, CG": "implicit (tail average + exact CG)",
    "reverse, last": "iterative (reverse), last iterate",
}


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """All methods at all budgets, on ridge and logistic regression, with one and many penalties."""
    few = ["forward, last", "forward, tail", "implicit, last", "implicit, tail", "implicit, CG"]
    many = ["forward, tail", "reverse, last", "implicit, tail"]
    cases = [
        ("ridge, p = 1", measure.ridge(seed), few),
        ("logistic, p = 1", measure.logistic(seed), few),
        (f"ridge, p = {sizes.many}", _penalties(seed, sizes.many), many),
    ]
    rows: list[dict[str, Any]] = []
    found: dict[tuple[str, str, int], measure.Chosen] = {}
    jobs = [(*case[:2], name, c) for case in cases for name in case[2] for c in sizes.calls]
    for case, at, name, calls in track(jobs, "methods x budgets"):
        chosen = measure.best(
            at, lambda s, at=at, name=name, calls=calls: estimator(name, at, calls, s / at.largest),
            STEPS, sizes.runs, seed + 1,
        )  # fmt: skip
        if chosen is None:
            continue
        found[case, name, calls] = chosen
        exact = chosen.accuracy
        rows.append(
            {
                "problem": case, "estimator": NAMES[name], "calls": round(chosen.cost),
                "relative MSE": exact.mse, "s.e.": exact.mse_error,
                "bias": float(np.linalg.norm(exact.bias)), "bias / s.e.": exact.resolved,
                "step x L": chosen.setting,
            }
        )  # fmt: skip
    theory = {case: predicted_ratio(at) for case, at, _ in cases if at.exact.size == 1}
    elsewhere = [
        {"problem": at.name, "data set": seed + j, "predicted ratio": predicted_ratio(at)}
        for make in (measure.ridge, measure.logistic)
        for j in track(range(sizes.data_sets), "other data sets")
        for at in [make(seed + j)]
    ]
    findings, checks = _conclude([case[0] for case in cases], found, sizes, theory)
    for name in ("ridge", "logistic"):
        ratios = [row["predicted ratio"] for row in elsewhere if row["problem"] == name]
        findings.append(
            f"{name.capitalize()}, {len(ratios)} data sets: the predicted ratio iterative / implicit "
            f"runs from {min(ratios):.2f} to {max(ratios):.2f}, median {np.median(ratios):.2f}."
        )
    drawn = _draw(cases, found, sizes)
    title = "Iterative against implicit differentiation at equal oracle calls"
    tables = {"accuracy": rows, "predicted ratio": elsewhere}
    return Result(title, drawn, tables, findings, checks)


def estimator(name: str, at: measure.Setting, calls: int, step: float) -> Any:
    """The method with the number of steps that ``calls`` gradients of single examples pay for."""
    solver, n = bl.SGD(step, batch_size=1), at.examples
    if name.startswith("forward"):
        steps = calls // (1 + at.exact.size)
        return bl.Forward(solver, steps, average=steps // 2 if name.endswith("tail") else 0)
    if name.startswith("reverse"):
        return bl.Reverse(solver, calls // 2)
    if name == "implicit, CG":
        steps = calls - 10 * n  # CG ends after about as many products as there are features
        return bl.Implicit(solver, steps, linear=bl.CG(tol=1e-10), average=steps // 2)
    steps = (calls - n) // 2
    average = steps // 2 if name.endswith("tail") else 0
    linear = bl.SGDLinear(step, steps=steps, batch_size=1, average=average)
    return bl.Implicit(solver, steps, linear=linear, average=average)


def _penalties(seed: int, p: int) -> measure.Setting:
    return measure.ridge(seed, features=p, hyper=np.full(p, -2.5))


def influences(at: measure.Setting) -> tuple[np.ndarray, np.ndarray]:
    """``(a.g_i, v.(H_i D* + C_i))`` at the solution: the noise of each example, iterate and derivative.

    ``v = H^-1 grad outer``; ``a = H^-1 b``, ``b`` the slope of the hypergradient in the iterate.
    One hyperparameter. Their sum is the influence of ``bilevel.noise.influence``, up to its sign.
    """
    problem, theta = at.problem, jnp.asarray(at.hyper)
    x = jnp.asarray(bl.testing.dense_solution(problem, at.hyper, at.params, at.data))

    def slope(x: Any, theta: Any, batch: Any) -> Any:
        return jax.grad(problem.inner)(x, theta, batch)

    H = jax.jacobian(slope)(x, theta, at.data.inner)
    v = jnp.linalg.solve(H, jax.grad(problem.outer)(x, theta, at.data.outer))
    D = -jnp.linalg.solve(H, jax.jacobian(slope, 1)(x, theta, at.data.inner))

    def along(fn: Any, x: Any) -> Any:
        return jax.jvp(fn, (x, theta), (D, jnp.ones_like(theta)))[1]

    outer = along(lambda *z: jax.grad(problem.outer)(*z, at.data.outer), x)
    bent = jax.grad(lambda x: along(lambda *z: v @ slope(*z, at.data.inner), x))(x)
    a = jnp.linalg.solve(H, outer - bent)

    def one(row: Any) -> Any:
        row = jax.tree.map(lambda leaf: leaf[None], row)
        return a @ slope(x, theta, row), along(lambda *z: v @ slope(*z, row), x)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(at.data.inner))


def predicted_ratio(at: measure.Setting) -> float:
    """MSE of iterative over implicit, tail averages at equal calls, long windows, small steps."""
    iterate, derivative = influences(at)
    return float((iterate + derivative).var() / (iterate.var() + derivative.var()))


def _conclude(
    cases: list[str], found: dict, sizes: Sizes, theory: dict[str, float]
) -> tuple[list[str], list[Check]]:
    last = sizes.calls[-1]
    findings, checks = [], []
    for case in cases:
        pair = found[case, "forward, tail", last], found[case, "implicit, tail", last]
        value, error = measure.ratio(pair[0].accuracy, pair[1].accuracy)
        word = measure.verdict(value, error, "better than", "worse than")
        findings.append(
            f"{case}: at {last} calls the tail average of iterative differentiation is {word} that "
            f"of implicit differentiation (ratio of MSE {measure.pm(value, error)}"
            + (f", leading-order theory {theory[case]:.3g})." if case in theory else ").")
        )
    for kind in ("forward", "implicit"):
        worst = 0.0
        for case in cases[:2]:
            pair = found[case, f"{kind}, tail", last], found[case, f"{kind}, last", last]
            value, error = measure.ratio(pair[0].accuracy, pair[1].accuracy)
            worst = max(worst, value + 4 * error)
            findings.append(
                f"{case}, {kind}: averaging the tail divides the MSE by "
                f"{measure.pm(1 / value, error / value**2)} at {last} calls, each at its best step."
            )
        checks.append(below(f"MSE of {kind} averaged over last, + 4 s.e.", worst, 1.0))
    slopes = {
        kind: measure.slope(
            sizes.calls, [found[cases[0], f"{kind}, tail", c].accuracy.mse for c in sizes.calls]
        )
        for kind in ("forward", "implicit")
    }
    findings.append(
        "Ridge: log MSE against log calls has slope "
        + " and ".join(f"{s:.2f} ({k})" for k, s in slopes.items())
        + ", theory -1 for both once the start is forgotten."
    )
    return findings, checks


def _draw(cases: Any, found: dict, sizes: Sizes) -> Any:
    made, axes = figure(1, len(cases), 12.5, 4.3)
    names = list(NAMES)
    for ax, (case, _, methods) in zip(axes[0], cases, strict=True):
        for name in methods:
            points = [found[case, name, c] for c in sizes.calls if (case, name, c) in found]
            style = dict(color=measure.COLOURS[names.index(name)], label=NAMES[name])
            style["linestyle"] = "--" if name.startswith("implicit") else "-"
            ax.errorbar(
                [p.cost for p in points], [p.accuracy.mse for p in points],
                yerr=[2 * p.accuracy.mse_error for p in points],
                marker=measure.MARKERS[names.index(name)], markersize=5, capsize=2, **style,
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", title=case, xlabel="gradients of single examples")
        ax.legend(fontsize=7.5)
    axes[0, 0].set_ylabel("relative MSE of the hypergradient")
    caption(made, "Each point at its best of three step sizes, on fresh runs; bars: 2 s.e.")
    return made


if __name__ == "__main__":
    sys.exit(command("seed_iterative_vs_implicit", __doc__, run, FULL, QUICK))
