r"""Mini-batch size and step schedule: what they do to the hypergradient of SGD.

1. At a fixed step and number of steps: bias and variance against the batch size B, with the exact
   moments of ridge regression (``bilevel.noise``) beside them. Theory: both fall as 1/B.
2. At equal gradients of single examples: error against B and the step. Theory: the floor is
   O(step / B), the transient is gone after about 1 / (step x curvature) steps, so that along a
   line step / B = const nothing changes until the step reaches its limit.
3. Schedules at equal gradients: constant; averaged tail; the theory's 2 / (mu (k + 8 (L/mu)^2));
   the same with a short delay; the step divided by 4 from stage to stage; the batch times 4
   instead; and epochs (without replacement) in place of independent draws.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

import bilevel as bl
from experiments.studies.base import Check, Result, Track, caption, command, figure, near, quiet
from experiments.studies.open_questions import measure, problems
from experiments.studies.open_questions.data_sets import load_regression
from experiments.studies.open_questions.schedules import SCHEDULES, STEP, make_schedule, run_stages
from experiments.studies.open_questions.theory import predict_epoch_bias, predict_moments


@dataclass(frozen=True)
class Sizes:
    """``batches``, powers of two; steps of part 1; budgets of parts 2 and 3; runs per point."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    steps: int = 400
    budget: int = 8_000
    budgets: tuple[int, ...] = (1_000, 4_000, 16_000)
    runs: int = 600
    many: int = 6_000
    diabetes: bool = False
    wine: bool = False


FULL = Sizes()
QUICK = Sizes(batches=(1, 4, 16), budget=2_000, budgets=(1_000, 4_000), runs=150, many=2_000)

STEPS = (0.05, 0.2, 0.8, 1.6, 3.2)  # of part 2


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """All three parts on one ridge regression with one penalty."""
    at = problems.make_ridge(seed)
    for table, asked in (("diabetes", sizes.diabetes), ("wine", sizes.wine)):
        if asked:
            X, y = load_regression(table, seed)
            at = problems.make_setting(f"ridge, {table}", problems.RIDGE, X, y, -2.5)
    fixed = _vary_batch(at, sizes, seed, track)
    equal = _compare_batches(at, sizes, seed, track)
    timed = _compare_schedules(at, sizes, seed, track)
    findings, checks = _conclude(at, fixed, equal, timed, sizes)
    tables = {"batch size": fixed, "batch at equal cost": equal, "schedules": timed}
    drawn = _draw(fixed, equal, timed)
    return Result("Mini-batch size and schedule", drawn, tables, findings, checks)


def _vary_batch(
    at: problems.Setting, sizes: Sizes, seed: int, track: Track
) -> list[dict[str, Any]]:
    rows = []
    for B in track(sizes.batches, "batch size"):
        step = STEP / at.largest
        got = measure.sample(at, bl.Forward(bl.SGD(step, batch_size=B), sizes.steps), sizes.many, B)
        exact = measure.assess(got.grads, at.exact)
        bias, sd = predict_moments(at, step, B, sizes.steps)
        rows.append(
            {
                "batch": B,
                "bias": float(exact.bias[0]),
                "bias s.e.": float(exact.bias_error[0]),
                "exact bias": bias,
                "sd": exact.sd,
                "sd s.e.": _estimate_sd_error(got.grads, at.exact),
                "predicted sd": sd,
            }
        )
    return rows


def _estimate_sd_error(grads: np.ndarray, exact: np.ndarray) -> float:
    """Standard error of the standard deviation, from the fourth moment."""
    errors = (grads[:, 0] - grads[:, 0].mean()) / np.linalg.norm(exact)
    variance = errors.var()
    return float(np.sqrt(((errors**4).mean() - variance**2) / len(errors)) / (2 * variance**0.5))


def _compare_batches(
    at: problems.Setting, sizes: Sizes, seed: int, track: Track
) -> list[dict[str, Any]]:
    rows = []
    for B in track(sizes.batches, "batch at equal cost"):
        for step in STEPS:
            # Stable below 2 / ((1 - 1/B) L_full + L_one / B); beyond it the mean square explodes.
            forward = bl.Forward(
                bl.SGD(step / at.largest, batch_size=B), max(sizes.budget // (2 * B), 1)
            )
            got = measure.sample(at, forward, sizes.runs, seed + 10 + B)
            exact = measure.assess(got.grads, at.exact)
            rows.append(
                {
                    "batch": B,
                    "step x L": step,
                    "cost": round(got.cost),
                    "relative MSE": exact.mse,
                    "s.e.": exact.mse_error,
                }
            )
    return rows


def _compare_schedules(
    at: problems.Setting, sizes: Sizes, seed: int, track: Track
) -> list[dict[str, Any]]:
    rows = []
    jobs = [(name, budget) for name in SCHEDULES for budget in sizes.budgets]
    for name, budget in track(jobs, "schedules"):
        if name.endswith("per stage"):
            got = run_stages(at, name, budget, sizes.runs, seed + 3)
        else:
            got = measure.sample(at, make_schedule(name, at, budget // 2), sizes.runs, seed + 3)
        exact = measure.assess(got.grads, at.exact)
        rows.append(
            {
                "schedule": name,
                "cost": round(got.cost),
                "relative MSE": exact.mse,
                "s.e.": exact.mse_error,
                "bias": float(exact.bias[0]),
                "bias / s.e.": exact.resolved,
            }
        )
    return rows


def _conclude(
    at: problems.Setting, fixed: Any, equal: Any, timed: Any, sizes: Sizes
) -> tuple[list[str], list[Check]]:
    batches = [row["batch"] for row in fixed]
    variance = [row["sd"] ** 2 for row in fixed]
    fall = measure.fit_slope(batches, variance)
    # Error of the slope from those of the sd's, which are independent.
    x = np.log(batches) - np.mean(np.log(batches))
    relative = np.array([2 * row["sd s.e."] / row["sd"] for row in fixed])
    error = float(np.sqrt(((x * relative) ** 2).sum()) / (x**2).sum())
    off = max(abs(row["bias"] - row["exact bias"]) / row["bias s.e."] for row in fixed)
    first = fixed[0]
    findings = [
        f"Variance falls with the batch size as B^{fall:.3f} (± {error:.1g}) at a fixed step; the "
        f"theory's small-step limit is B^-1.",
        f"At B = {first['batch']} the same-run bias is {100 * first['bias']:.2f} ± "
        f"{100 * first['bias s.e.']:.1g} % of the gradient, exact moments say "
        f"{100 * first['exact bias']:.2f} %; the largest distance over all B is {off:.1f} s.e.",
    ]
    finite = [row for row in equal if np.isfinite(row["relative MSE"])]
    tops = [
        min((r for r in finite if r["batch"] == B), key=lambda r: r["relative MSE"])
        for B in batches
    ]
    findings.append(
        f"At {sizes.budget} gradients the best step grows with B ("
        + ", ".join(f"B = {r['batch']}: {r['step x L']:g}/L" for r in tops)
        + ") and the best relative MSE is "
        + ", ".join(measure.show(r["relative MSE"], r["s.e."]) for r in tops)
        + ": the batch size is nearly free until the largest step binds."
    )
    last = timed[len(sizes.budgets) - 1 :: len(sizes.budgets)]
    order = sorted(last, key=lambda r: r["relative MSE"])
    epochs = last[SCHEDULES.index("tail average, epochs")]
    leading = predict_epoch_bias(at, STEP / 2 / at.largest)
    findings.append(
        f"Epochs leave a bias in the tail average: {100 * epochs['bias']:.2f} % of the gradient, "
        f"{epochs['bias / s.e.']:.0f} s.e. ({100 * leading:.2f} % to leading order in the step, "
        f"``noise.shuffled.tail_average_shift``), where independent draws leave "
        f"{100 * last[SCHEDULES.index('tail average')]['bias']:.2f} % "
        f"({last[SCHEDULES.index('tail average')]['bias / s.e.']:.1f} s.e.)."
    )
    findings.append(
        f"Schedules at {sizes.budgets[-1]} gradients, from the step {STEP / 2:g}/L but for the two "
        "2 / mu, best first: "
        + "; ".join(f"{r['schedule']} {measure.show(r['relative MSE'], r['s.e.'])}" for r in order)
        + "."
    )
    checks = [
        near("exponent of the variance in B", fall, -1.0, 4 * error + 0.1),
        near("bias of epochs over its leading order", epochs["bias"] / leading, 1.0, 0.15),
        Check("bias from exact moments, in s.e.", off, "less than 4 for every B", off < 4),
    ]
    return findings, checks


def _draw(fixed: Any, equal: Any, timed: Any) -> Any:
    made, axes = figure(1, 3, 13, 4.4)
    left, middle, right = axes[0]
    rows = [
        {
            "batch": r["batch"],
            "variance": r["sd"] ** 2,
            "its s.e.": 2 * r["sd"] * r["sd s.e."],
            "delta": r["predicted sd"] ** 2,
            "bias": abs(r["bias"]),
            "s.e.": r["bias s.e."],
            "exact": abs(r["exact bias"]),
            "1 / B": fixed[0]["sd"] ** 2 / r["batch"],
        }
        for r in fixed
    ]
    draw = measure.plot
    draw(left, 0, rows, "batch", "variance", "its s.e.", ls="", label="variance, measured")
    draw(left, 0, rows, "batch", "delta", marker="", label="variance, delta method")
    draw(left, 1, rows, "batch", "bias", "s.e.", ls="", label="|bias|, measured")
    draw(left, 1, rows, "batch", "exact", marker="", label="|bias|, exact moments")
    draw(left, 6, rows, "batch", "1 / B", marker="", ls=":", label="1 / B")
    left.set(title="fixed step, fixed number of steps", ylabel="relative to the hypergradient")
    for j, step in enumerate(STEPS):
        some = [r for r in equal if r["step x L"] == step and 0 < r["relative MSE"] < 10]
        draw(middle, j, some, "batch", "relative MSE", "s.e.", label=f"step {step:g} / L")
    middle.set(title=f"equal gradients: {max(r['cost'] for r in equal)}", ylabel="relative MSE")
    for ax in (left, middle):
        ax.set(yscale="log", xlabel="batch size B")
        ax.set_xscale("log", base=2)
    for j, name in enumerate(SCHEDULES):
        some = [r for r in timed if r["schedule"] == name]
        line = "--" if "epochs" in name else "-"
        draw(right, j, some, "cost", "relative MSE", "s.e.", label=name, linestyle=line)
    right.set(xscale="log", yscale="log", title="schedules", ylabel="relative MSE")
    right.set(xlabel="gradients of single examples", ylim=(None, 100))  # room for the names
    for ax in (left, middle, right):
        ax.legend(fontsize=7)
    caption(made, "Ridge regression, one penalty; bars: 2 s.e. Points above 10 are left out.")
    return made


if __name__ == "__main__":
    options = {table: f"on {table} instead of synthetic data" for table in ("diabetes", "wine")}
    sys.exit(command("seed_batch_and_schedule", __doc__, run, FULL, QUICK, options=options))
