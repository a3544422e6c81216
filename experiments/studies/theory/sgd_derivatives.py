"""Derivatives of SGD on least squares: the four regimes of Figure 1 of arXiv:2405.15894.

Suboptimality and Jacobian error of SGD on single rows, many runs of `bl.Forward` at once, against
the exact second moments (`bilevel.noise.moments`) and the bound of the theorem
(`bilevel.noise.bounds`). Columns: constant step; decreasing step 2 / (mu (k + 8 kappa^2)); double
interpolation, b(theta) = A theta; simple interpolation, b(theta) = theta = A zeta.

The paper's sizes, data and step sizes are not legible; here rows are uniform on the sphere and the
constant step is the theorem's largest, mu / (4 L^2). About 20 s with --quick, else 2 to 5 minutes.

Where noise is multiplicative alone (interpolation) second moments are carried by rare runs, and a
sample mean underestimates them together with its own standard error. So z scores are taken where
the runs count as at least a quarter of their number, (sum s)^2 / sum s^2 >= R/4, and the errors are
above rounding; the figure shows medians too, and a table what happens at a large step.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.studies import base
from experiments.studies.theory.sgd_references import follow_rare_runs, hold_against_reference
from experiments.studies.theory.sgd_regimes import (
    MEASURES,
    Curves,
    Regime,
    compute_curves,
    fit_slope,
    make_regimes,
    predict_limits,
)
from experiments.studies.theory.sgd_runs import (
    ROUNDING,
    Means,
    compare_means,
    make_grid,
    sample_runs,
)


@dataclass(frozen=True)
class Sizes:
    """m rows, n features, steps of the exact recursion, steps and number of the runs."""

    rows: int = 50
    features: int = 5
    exact_steps: int = 100_000
    steps: int = 100_000
    runs: int = 200
    ridge_runs: int = 2000
    rare_runs: int = 2000
    chunks: int = 4
    stride: int = 100


FULL = Sizes()
QUICK = Sizes(steps=10_000, runs=100, ridge_runs=400, rare_runs=1000, chunks=2)


def run(sizes: Sizes, seed: int, track: base.Track) -> base.Result:
    """All regimes, ridge against reference moments, and what sample means do at a large step."""
    key, of_ridge, of_rare = jax.random.split(jax.random.key(seed), 3)
    columns = make_regimes(sizes.rows, sizes.features, sizes.exact_steps, seed)
    shown, table, limits, checks = [], [], [], []
    worst, tested = 0.0, 0
    for index, regime in enumerate(columns):
        exact = compute_curves(regime)
        cut = regime._replace(steps=regime.steps[: sizes.steps])
        each = jax.random.fold_in(key, index)
        bar = lambda parts, name=regime.name: track(parts, name)  # noqa: E731
        samples = sample_runs(cut, sizes.runs, sizes.chunks, sizes.stride, each, bar)
        records = make_grid(samples.shape[1])
        steps = sizes.stride * (records + 1)
        pair = [
            compare_means(samples[:, records, which], exact.exact[which][steps - 1])
            for which in (0, 1)
        ]
        shown.append((regime, exact, steps, pair))
        for which, (compared, limit) in enumerate(
            zip(pair, predict_limits(regime, exact.exact), strict=True)
        ):
            z = np.abs(compared.z[compared.reliable])
            worst, tested = max(worst, float(z.max(initial=0))), tested + len(z)
            curve, bound = exact.exact[which], exact.bound[which]
            end = np.nonzero(curve > ROUNDING)[0][-1]
            of = {"regime": regime.name, "measure": MEASURES[which]}
            table.append(
                {
                    **of,
                    "steps compared": len(z),
                    "max |z|": float(z.max(initial=0)),
                    "bound / exact": bound[end] / curve[end],
                    "at step": int(end) + 1,
                }
            )
            limits.append({**of, **limit})
    name = f"largest |z| of {tested} comparisons"
    checks.append(base.below(name, worst, 4.0))
    slopes = [fit_slope(curve, 8 / _find_curvature(columns[1]) ** 2) for curve in shown[1][1].exact]
    for which, found in zip(MEASURES, slopes, strict=True):
        checks.append(base.near(f"decreasing step, slope of the {which}", found, -1.0, 0.01))
    ridge, check = hold_against_reference(sizes.ridge_runs, of_ridge, track)
    rare = follow_rare_runs(columns[2], sizes.rare_runs, of_rare, track)
    findings = describe_findings(sizes, worst, tested, slopes, rare)
    tables = {
        "Monte Carlo against exact moments": table,
        "limits": limits,
        "ridge against reference moments": ridge,
        "rare runs": rare,
    }
    numbers = {
        "kappa": 1 / _find_curvature(columns[0]),
        "slopes": slopes,
        "curves": _collect_curves(shown),
    }
    figure = draw(shown, sizes)
    title = "Derivatives of SGD: four regimes of least squares"
    return base.Result(title, figure, tables, findings, [*checks, check], numbers)


def describe_findings(
    sizes: Sizes, worst: float, tested: int, slopes: list[float], rare: list[dict[str, Any]]
) -> list[str]:
    """Return what the tables say, a sentence or two each."""
    return [
        f"The mean of {sizes.runs} runs is within {worst:.2f} standard errors of the exact moment "
        f"at all {tested} steps compared. They are correlated; even {tested} independent ones "
        f"would exceed 4 with a probability of {tested * 6.3e-5:.1%} only.",
        f"Decreasing step: slopes {slopes[0]:.4f} and {slopes[1]:.4f} over the last decade of "
        "k + 8 kappa^2. The errors fall as 1/k, without the logarithms of the theorem.",
        f"Where nothing but multiplicative noise is left and the step is large (0.9), the mean of "
        f"{sizes.rare_runs} runs is {rare[-1]['mean / exact']:.2g} of the true second moment after "
        f"{rare[-1]['step']} steps, and its own standard error says z = {rare[-1]['naive z']:.3g}: "
        "rare runs carry the moment. Trust the recursion there, or medians.",
    ]


def _find_curvature(regime: Regime) -> float:
    return float(np.linalg.eigvalsh(regime.A.T @ regime.A / len(regime.A))[0])


def _collect_curves(shown: list[tuple[Regime, Curves, np.ndarray, list[Means]]]) -> dict[str, Any]:
    """The points of the figure."""
    return {
        regime.name: {
            measure: {
                "step": steps,
                "exact": exact.exact[which][steps - 1],
                "bound": exact.bound[which][steps - 1],
                **pair[which]._asdict(),
            }
            for which, measure in enumerate(MEASURES)
        }
        for regime, exact, steps, pair in shown
    }


def draw(shown: list[tuple[Regime, Curves, np.ndarray, list[Means]]], sizes: Sizes) -> Any:
    """Two rows, four columns, as in the paper."""
    figure, axes = base.figure(2, 4, 14, 6.6)
    for column, (regime, exact, steps, pair) in enumerate(shown):
        geometric = "interpolation" in regime.name
        falls = np.nonzero(exact.exact[0] < 1e-30)[0]
        end = int(1.1 * falls[0]) if geometric and len(falls) else sizes.steps
        k = np.unique(np.geomspace(1, min(end, exact.exact.shape[1]), 600).astype(int))
        k = np.unique(np.linspace(1, k[-1], 600).astype(int)) if geometric else k
        for row, at in enumerate(axes[:, column]):
            inside = steps <= k[-1]
            compared = pair[row]
            at.plot(k, exact.bound[row][k - 1], ":", color="C3", label="bound of the theorem")
            at.plot(k, exact.exact[row][k - 1], color="C0", linewidth=2, label="exact moment")
            for values, marker, color, size, label in (
                (compared.mean, "o", "k", 3.5, f"mean of {sizes.runs} runs"),
                (compared.median, "_", "C2", 7, "median of the runs"),
            ):
                style = {"color": color, "markersize": size, "label": label}
                at.plot(steps[inside], values[inside], marker, **style)
            if regime.name == "decreasing step":
                tail = k[k > k[-1] / 12]
                level = 0.35 * exact.exact[row][k[-1] - 1] * k[-1]
                at.plot(tail, level / tail, "--", color="0.4", label="slope -1")
            at.set_yscale("log")
            at.set_xscale("linear" if geometric else "log")
            at.set_xlabel("step k")
            if row == 0:
                at.set_title(regime.name)
        axes[0, 0].set_ylabel(r"suboptimality  $E\,f(x_k) - f^\star$")
        axes[1, 0].set_ylabel(r"Jacobian error  $E\,\|D_k - D^\star\|_F^2$")
    axes[0, 1].legend(fontsize=8, loc="lower left")
    base.caption(
        figure,
        f"SGD on single rows of least squares, {sizes.rows} x {sizes.features}, and its derivative "
        "by bl.Forward; interpolation is shown down to where rounding ends the fall "
        "(squared errors of 1e-30).\nThe curves are recursions of moments: nothing is fitted to "
        "the runs. Where noise is multiplicative alone, rare runs carry the mean and the median "
        "lies below it.",
    )
    return figure


if __name__ == "__main__":
    sys.exit(base.command("sgd_derivatives", __doc__, run, FULL, QUICK))
