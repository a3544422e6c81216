r"""Variance reduction of the hypergradient of SGD, in mean squared error per gradient.

Same-run ``Forward`` multiplies an iterate by a derivative that saw the same examples:

    mean of D_K^T grad outer(x_K) = exact + <Q, E[u E^T]> + (shift of the mean off a quadratic)

* cross-sampling takes ``x`` from an independent run: the product's bias goes, the shift stays;
* Richardson extrapolation removes both to first order in the step;
* tail averaging divides the variance by the window and the product's bias too, not the shift;
* SVRG and SAGA have no floor at all, for the iterate and for its derivative.

Part 1 resolves biases at one fixed step, with many runs; part 2 spends equal gradients of single
examples, each method at its best step.
"""

import sys
from dataclasses import dataclass
from typing import Any

import bilevel as bl
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet
from experiments.studies.open_questions import measure, problems
from experiments.studies.open_questions.theory import predict_moments


@dataclass(frozen=True)
class Sizes:
    """Steps and runs of part 1; budgets in gradients of single examples and runs of part 2."""

    steps: int = 1_000
    many: int = 8_000
    budgets: tuple[int, ...] = (1_000, 3_000, 9_000)
    runs: int = 300


FULL = Sizes()
QUICK = Sizes(steps=500, many=3_000, budgets=(3_000,), runs=100)

STEP = 0.8  # of part 1, over the largest curvature of one example
STEPS = (0.8, 0.2, 0.05)  # of part 2, for SGD
REDUCED = (1.0, 0.3)  # of part 2, for SVRG and SAGA
BIASES = ("same run", "cross-sampling", "Richardson", "tail average", "tail + Richardson")
METHODS = ("same run", "cross-sampling", "tail average", "tail + cross", "tail + Richardson")
METHODS += ("SVRG", "SAGA")
PRICES = {  # gradients of single examples a step, at one hyperparameter and n = 64
    "same run": 2,
    "cross-sampling": 3,
    "tail average": 2,
    "tail + cross": 3,
    "tail + Richardson": 4,
    "SVRG": 5,
    "SAGA": 2,
}


def make_estimator(name: str, step: float, steps: int) -> Any:
    """The named method on single examples."""
    average = steps // 2 if name.startswith("tail") else 0
    solver: Any = bl.SGD(step, batch_size=1)
    if name in ("SVRG", "SAGA"):
        solver = bl.SVRG(step) if name == "SVRG" else bl.SAGA(step)
    one = bl.Forward(solver, steps, average=average, cross=name.endswith(("cross", "sampling")))
    return bl.Richardson(one) if name.endswith("Richardson") else one


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """Both parts, on ridge and on logistic regression with one penalty."""
    cases = [problems.make_ridge(seed), problems.make_logistic(seed)]
    biases = {
        (at.name, name): _measure_bias(at, name, sizes, seed)
        for at, name in track([(at, name) for at in cases for name in BIASES], "biases")
    }
    jobs = [(at, name, budget) for at in cases for name in METHODS for budget in sizes.budgets]
    spent = {}
    for at, name, budget in track(jobs, "methods x budgets"):
        spent[at.name, name, budget] = measure.find_best(
            at,
            lambda s, at=at, name=name, budget=budget: make_estimator(
                name, s / at.largest, budget // PRICES[name]
            ),
            REDUCED if name in ("SVRG", "SAGA") else STEPS,
            sizes.runs,
            seed + 1,
        )
    exact = predict_moments(cases[0], STEP / cases[0].largest, 1, sizes.steps)[0]
    findings, checks = _conclude(biases, spent, sizes, exact)
    tables = {
        "bias at a fixed step": [
            {
                "problem": case,
                "estimator": name,
                "bias": float(a.bias[0]),
                "s.e.": float(a.bias_error[0]),
                "|bias| / s.e.": a.resolved,
                "sd of one run": a.sd,
            }
            for (case, name), a in biases.items()
        ],
        "error at equal gradients": [
            {
                "problem": case,
                "estimator": name,
                "gradients": round(c.cost),
                "relative MSE": c.accuracy.mse,
                "s.e.": c.accuracy.mse_error,
                "step x L": c.setting,
            }
            for (case, name, _), c in spent.items()
            if c is not None
        ],
    }
    drawn = _draw(biases, spent, sizes, exact)
    return Result("Variance reduction, in error per gradient", drawn, tables, findings, checks)


def _measure_bias(at: problems.Setting, name: str, sizes: Sizes, seed: int) -> measure.Accuracy:
    # Richardson needs stability, and few higher orders, at the double step: it gets half of it.
    step = STEP / at.largest / (2 if name.endswith("Richardson") else 1)
    one = make_estimator(name, step, sizes.steps)
    return measure.assess(measure.sample(at, one, sizes.many, seed + 7).grads, at.exact)


def _conclude(biases: Any, spent: Any, sizes: Sizes, exact: float) -> Any:
    findings = []
    same, cross = biases["ridge", "same run"], biases["ridge", "cross-sampling"]
    findings.append(
        f"Ridge, fixed step: the same-run bias is {measure.show(same.bias[0], same.bias_error[0])} "
        f"of the gradient ({same.resolved:.1f} s.e., exact moments: {exact:.3g}); with "
        f"cross-sampling it is {measure.show(cross.bias[0], cross.bias_error[0])} "
        f"({cross.resolved:.1f} s.e.)."
    )
    sides = {name: biases["logistic", name] for name in BIASES}
    findings.append(
        "Logistic, fixed step (relative bias): "
        + ", ".join(f"{n} {measure.show(a.bias[0], a.bias_error[0])}" for n, a in sides.items())
        + ": off a quadratic cross-sampling leaves the shift of the mean, with which the product's "
        "bias may have cancelled."
    )
    last = sizes.budgets[-1]
    for case in ("ridge", "logistic"):
        base = spent[case, "same run", last].accuracy
        parts = []
        for name in METHODS[1:]:
            value, error = measure.compare_errors(base, spent[case, name, last].accuracy)
            parts.append(f"{name} {measure.show(value, error)}")
        findings.append(
            f"{case.capitalize()}, {last} gradients: the MSE of same-run SGD is divided by "
            + ", ".join(parts)
            + "."
        )
    tail, plain = spent["ridge", "tail average", last], spent["ridge", "same run", last]
    value, error = measure.compare_errors(tail.accuracy, plain.accuracy)
    floors = max(
        spent[case, name, last].accuracy.mse / spent[case, "tail average", last].accuracy.mse
        for case in ("ridge", "logistic")
        for name in ("SVRG", "SAGA")
    )
    checks = [
        Check("same-run bias on ridge, in s.e.", same.resolved, "more than 4", same.resolved > 4),
        below("bias with cross-sampling on ridge, in s.e.", cross.resolved, 4.0),
        below(
            "|same-run bias - exact moments| on ridge, in s.e.",
            abs(same.bias[0] - exact) / same.bias_error[0],
            4.0,
        ),
        below("MSE of the tail average over the last iterate's, + 4 s.e.", value + 4 * error, 1.0),
        below("MSE of SVRG and SAGA over the tail average's, the worst", floors, 1.0),
    ]
    return findings, checks


def _draw(biases: Any, spent: Any, sizes: Sizes, exact: float) -> Any:
    made, axes = figure(2, 2, 11, 7.6)
    for column, case in enumerate(("ridge", "logistic")):
        ax = axes[0, column]
        for j, name in enumerate(BIASES):
            a = biases[case, name]
            ax.errorbar(
                100 * a.bias[0],
                -j,
                xerr=400 * a.bias_error[0],
                fmt="o",
                capsize=3,
                color="#0072B2" if a.resolved < 4 else "#D55E00",
            )
        ax.axvline(0, color="0.3", linewidth=1)
        if case == "ridge":
            ax.axvline(100 * exact, color="#D55E00", linestyle=":", label="same run, exact moments")
            ax.legend(fontsize=8)
        ax.set_yticks([-j for j in range(len(BIASES))], BIASES)
        ax.set_ylim(-len(BIASES) + 0.4, 0.6)
        ax.set(title=f"{case}: bias at a fixed step, ± 4 s.e.", xlabel="% of the hypergradient")
        ax = axes[1, column]
        for j, name in enumerate(METHODS):
            points = [spent[case, name, b] for b in sizes.budgets]
            rows = [
                {"x": p.cost, "y": p.accuracy.mse, "s.e.": p.accuracy.mse_error} for p in points
            ]
            measure.plot(ax, j, rows, "x", "y", "s.e.", label=name)
        ax.set(
            xscale="log",
            yscale="log",
            title=f"{case}: error at equal gradients",
            xlabel="gradients of single examples",
            ylabel="relative MSE",
        )
        ax.set(ylim=(1e-10, None))  # SVRG and SAGA go on, to rounding
        ax.legend(fontsize=7.5, loc="lower right")
    caption(
        made, "Orange: resolved at 4 s.e. Richardson at half the step. Below: best step, 2 s.e."
    )
    return made


if __name__ == "__main__":
    sys.exit(command("seed_variance_reduction", __doc__, run, FULL, QUICK))
