r"""Stochastic iterative against stochastic implicit differentiation at equal oracle calls.

Iterative: ``Forward``, the derivative of SGD with the minibatches of SGD. Implicit: SGD, then SGD
on the linear system with fresh minibatches, as many steps each. At one hyperparameter both take two
calls a step. At p of them ``Forward`` takes 1 + p, ``Reverse`` and ``Implicit`` still two.

Leading order of tail averages over N steps: both carry the noise ``a.g_i`` of the iterate and
``v.(H_i D* + C_i)`` of the derivative, ``v`` the adjoint, ``a`` the slope of the hypergradient in
the iterate over H. Iterative differentiation adds the two before it squares (same examples),
implicit after (independent ones; its C reads all data). So neither has to win: the sign of their
correlation over the examples decides, and ``predicted_ratio`` says which.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

import bilevel as bl
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet
from experiments.studies.open_questions import measure, problems
from experiments.studies.open_questions.theory import predict_ratio

STEPS = (0.8, 0.2, 0.05)  # step sizes, over 1 / (largest curvature of one example)


@dataclass(frozen=True)
class Sizes:
    """Budgets in gradients of single examples, runs per point, p of the third case, data sets."""

    calls: tuple[int, ...] = (1_000, 4_000, 16_000)
    runs: int = 300
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
        ("ridge, p = 1", problems.make_ridge(seed), few),
        ("logistic, p = 1", problems.make_logistic(seed), few),
        (f"ridge, p = {sizes.many}", _make_penalties(seed, sizes.many), many),
    ]
    rows: list[dict[str, Any]] = []
    found: dict[tuple[str, str, int], measure.Chosen] = {}
    jobs = [(*case[:2], name, c) for case in cases for name in case[2] for c in sizes.calls]
    for case, at, name, calls in track(jobs, "methods x budgets"):
        chosen = measure.find_best(
            at,
            lambda s, at=at, name=name, calls=calls: make_estimator(
                name, at, calls, s / at.largest
            ),
            STEPS,
            sizes.runs,
            seed + 1,
        )
        if chosen is None:
            continue
        found[case, name, calls] = chosen
        exact = chosen.accuracy
        rows.append(
            {
                "problem": case,
                "estimator": NAMES[name],
                "calls": round(chosen.cost),
                "relative MSE": exact.mse,
                "s.e.": exact.mse_error,
                "bias": float(np.linalg.norm(exact.bias)),
                "bias / s.e.": exact.resolved,
                "step x L": chosen.setting,
            }
        )
    theory = {case: predict_ratio(at) for case, at, _ in cases if at.exact.size == 1}
    elsewhere = [
        {"problem": at.name, "data set": seed + j, "predicted ratio": predict_ratio(at)}
        for make in (problems.make_ridge, problems.make_logistic)
        for j in track(range(sizes.data_sets), "other data sets")
        for at in [make(seed + j)]
    ]
    findings, checks = _conclude([case[0] for case in cases], found, sizes, theory)
    for name in ("ridge", "logistic"):
        ratios = [row["predicted ratio"] for row in elsewhere if row["problem"] == name]
        findings.append(
            f"{name.capitalize()}, {len(ratios)} data sets: the predicted ratio iterative over "
            f"implicit runs from {min(ratios):.2f} to {max(ratios):.2f}, median "
            f"{np.median(ratios):.2f}."
        )
    drawn = _draw(cases, found, sizes)
    title = "Iterative against implicit differentiation at equal oracle calls"
    tables = {"accuracy": rows, "predicted ratio": elsewhere}
    return Result(title, drawn, tables, findings, checks)


def make_estimator(name: str, at: problems.Setting, calls: int, step: float) -> Any:
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


def _make_penalties(seed: int, p: int) -> problems.Setting:
    return problems.make_ridge(seed, features=p, hyper=np.full(p, -2.5))


def _conclude(
    cases: list[str], found: dict, sizes: Sizes, theory: dict[str, float]
) -> tuple[list[str], list[Check]]:
    last = sizes.calls[-1]
    findings, checks = [], []
    for case in cases:
        pair = found[case, "forward, tail", last], found[case, "implicit, tail", last]
        value, error = measure.compare_errors(pair[0].accuracy, pair[1].accuracy)
        word = measure.judge_difference(value, error, "better than", "worse than")
        findings.append(
            f"{case}: at {last} calls the tail average of iterative differentiation is {word} that "
            f"of implicit differentiation (ratio of MSE {measure.show(value, error)}"
            + (f", leading-order theory {theory[case]:.3g})." if case in theory else ").")
        )
    for kind in ("forward", "implicit"):
        worst = 0.0
        for case in cases[:2]:
            pair = found[case, f"{kind}, tail", last], found[case, f"{kind}, last", last]
            value, error = measure.compare_errors(pair[0].accuracy, pair[1].accuracy)
            worst = max(worst, value + 4 * error)
            findings.append(
                f"{case}, {kind}: averaging the tail divides the MSE by "
                f"{measure.show(1 / value, error / value**2)} at {last} calls, each at its best "
                "step."
            )
        checks.append(below(f"MSE of {kind} averaged over last, + 4 s.e.", worst, 1.0))
    slopes = {
        kind: measure.fit_slope(
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
            rows = [
                {"x": p.cost, "y": p.accuracy.mse, "s.e.": p.accuracy.mse_error} for p in points
            ]
            line = "--" if name.startswith("implicit") else "-"
            j = names.index(name)
            measure.plot(ax, j, rows, "x", "y", "s.e.", label=NAMES[name], linestyle=line)
        ax.set(xscale="log", yscale="log", title=case, xlabel="gradients of single examples")
        ax.set_ylim(top=6 * ax.get_ylim()[1])  # room for the names
        ax.legend(fontsize=7.5)
    axes[0, 0].set_ylabel("relative MSE of the hypergradient")
    caption(made, "Each point at its best of three step sizes, on fresh runs; bars: 2 s.e.")
    return made


if __name__ == "__main__":
    sys.exit(command("seed_iterative_vs_implicit", __doc__, run, FULL, QUICK))
