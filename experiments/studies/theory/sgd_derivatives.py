"""Derivatives of SGD on least squares: the four regimes of Figure 1 of arXiv:2405.15894.

Suboptimality and Jacobian error of SGD on single rows, many runs of `bl.Forward` at once, against
the exact second moments (`bilevel.noise.moments`), the recursion of the paper's proposition
(`bilevel.noise.bounds`, whose constants are reconstructed) and the rates of its theorem. Columns:
constant step; decreasing step 2 / (mu (k + 8 kappa^2)); double interpolation, b(theta) = A theta;
simple interpolation, b(theta) = theta = A zeta. As in the paper the Jacobian error is a norm; its
mean is the root of the mean square. `--squared` draws the square, `--log-k` a logarithmic k axis.

The paper's sizes, data and step sizes are not legible; here rows are uniform on the sphere and the
constant step is the theorem's largest, mu / (4 L^2). Five seeds, of data and draws. About 40 s with
--quick, else 4 minutes.

Where noise is multiplicative alone (interpolation) second moments are carried by rare runs, and a
sample mean underestimates them together with its own standard error. So z scores are taken where
the runs count as at least a quarter of their number, (sum s)^2 / sum s^2 >= R/4, and the errors are
above rounding; the figure shows medians too, and a table what happens at a large step.
"""

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.studies import base
from experiments.studies.theory.largest_z import judge_largest, resample_largest
from experiments.studies.theory.sgd_figure import SINGLE, Column, Look, draw_regimes
from experiments.studies.theory.sgd_references import follow_rare_runs, hold_against_reference
from experiments.studies.theory.sgd_regimes import (
    MEASURES,
    compute_curves,
    find_strong_convexity,
    fit_slope,
    make_regimes,
    predict_limits,
)
from experiments.studies.theory.sgd_runs import ROUNDING, compare_means, make_grid, sample_runs

NULL = 4000  # draws of the largest |z| under chance


@dataclass(frozen=True)
class Sizes:
    """m rows, n features, steps of the exact recursion, steps and number of the runs."""

    rows: int = 50
    features: int = 5
    exact_steps: int = 100_000
    steps: int = 100_000
    runs: int = 200
    seeds: int = 5
    ridge_runs: int = 2000
    rare_runs: int = 2000
    chunks: int = 4
    stride: int = 100
    squared: bool = False
    log_k: bool = False


FULL = Sizes()
QUICK = Sizes(steps=10_000, runs=100, seeds=2, ridge_runs=400, rare_runs=1000, chunks=2)
OPTIONS = {
    "squared": "draw squared Jacobian errors, not their norm",
    "log_k": "draw k on a logarithmic axis",
}


class Compared(NamedTuple):
    """All columns of one seed, and the null distribution of its largest |z|, ``[NULL]``."""

    columns: list[Column]
    null: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """Every reliable |z|."""
        return np.concatenate([np.abs(m.z[m.reliable]) for c in self.columns for m in c.means])


def compare_seed(sizes: Sizes, seed: int, track: base.Track) -> Compared:
    """Run all columns with data and draws of one seed."""
    key, rng = jax.random.key(seed), np.random.default_rng(seed)
    columns, null = [], np.zeros(NULL)
    for index, regime in enumerate(
        make_regimes(sizes.rows, sizes.features, sizes.exact_steps, seed)
    ):
        curves = compute_curves(regime)
        cut = regime._replace(steps=regime.steps[: sizes.steps])
        bar = lambda parts, name=regime.name: track(parts, f"seed {seed}, {name}")  # noqa: E731
        each = jax.random.fold_in(key, index)
        samples = sample_runs(cut, sizes.runs, sizes.chunks, sizes.stride, each, bar)
        records = make_grid(samples.shape[1])
        steps = sizes.stride * (records + 1)
        means = [
            compare_means(samples[:, records, which], curves.exact[which][steps - 1])
            for which in (0, 1)
        ]
        shared = [samples[:, records, w][:, m.reliable] for w, m in enumerate(means)]
        null = np.maximum(null, resample_largest(np.concatenate(shared, 1), NULL, rng))
        columns.append(Column(regime, curves, steps, means, samples[:SINGLE], sizes.stride))
    return Compared(columns, null)


def run(sizes: Sizes, seed: int, track: base.Track) -> base.Result:
    """All regimes, ridge against reference moments, and what sample means do at a large step."""
    of_ridge, of_rare = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1000))
    seeds = [seed + number for number in range(sizes.seeds)]
    compared = [compare_seed(sizes, each, track) for each in seeds]
    found = [
        (each, float(c.scores.max(initial=0)), len(c.scores))
        for each, c in zip(seeds, compared, strict=True)
    ]
    chance, check = judge_largest(found, [c.null for c in compared])
    first, checks = compared[0].columns, [check]
    slopes = []
    for each, c in zip(seeds, compared, strict=True):
        regime, curves = c.columns[1].regime, c.columns[1].curves
        offset = 8 / find_strong_convexity(regime.A) ** 2
        slopes.append([fit_slope(curve, offset) for curve in curves.exact])
        for which, slope in zip(MEASURES, slopes[-1], strict=True):
            name = f"decreasing step, seed {each}, slope of the {which}"
            checks.append(base.near(name, slope, -1.0, 0.01))
    ridge, check = hold_against_reference(sizes.ridge_runs, of_ridge, track)
    rare = follow_rare_runs(first[2].regime, sizes.rare_runs, of_rare, track)
    table, limits = _tabulate(first)
    figure = draw_regimes(
        first, sizes.steps, sizes.runs, Look(sizes.squared, sizes.log_k), _caption(sizes)
    )
    return base.Result(
        "Derivatives of SGD: four regimes of least squares",
        figure,
        {
            "Monte Carlo against exact moments": table,
            "largest z by chance": chance,
            "limits": limits,
            "ridge against reference moments": ridge,
            "rare runs": rare,
        },
        describe_findings(sizes, chance, slopes, rare),
        [*checks, check],
        {
            "kappa": 1 / find_strong_convexity(first[0].regime.A),
            "slopes": slopes,
            "curves": _collect_curves(first),
        },
    )


def _tabulate(columns: list[Column]) -> tuple[base.Table, base.Table]:
    """Return the rows of every panel: runs and bound against the exact moment; and its limit."""
    table, limits = [], []
    for column in columns:
        regime, curves = column.regime, column.curves
        for which, limit in enumerate(predict_limits(regime, curves.exact)):
            z = np.abs(column.means[which].z[column.means[which].reliable])
            curve, bound = curves.exact[which], curves.bound[which]
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
    return table, limits


def describe_findings(
    sizes: Sizes, chance: base.Table, slopes: list[list[float]], rare: base.Table
) -> list[str]:
    """Return what the tables say, a sentence or two each."""
    worst = max(row["largest |z|"] for row in chance)
    compared = sum(row["steps compared"] for row in chance)
    apart = max(abs(slope + 1) for pair in slopes for slope in pair)
    smallest = min(row["p"] for row in chance)
    return [
        f"The mean of {sizes.runs} runs is within {worst:.2f} standard errors of the exact moment "
        f"at all {compared} steps compared, of {sizes.seeds} seeds. Chance alone makes the largest "
        f"of a seed as large with a probability of {smallest:.2g} or more (runs resampled, with "
        "their correlation and skewness).",
        f"Decreasing step: all slopes over the last decade of k + 8 kappa^2 are within {apart:.4f} "
        "of -1. On least squares, where the Hessian does not vary (M = 0), the errors fall as 1/k, "
        "without the logarithms of the theorem.",
        f"Where nothing but multiplicative noise is left and the step is large (0.9), the mean of "
        f"{sizes.rare_runs} runs is {rare[-1]['mean / exact']:.2g} of the true second moment after "
        f"{rare[-1]['step']} steps, and its own standard error says z = {rare[-1]['naive z']:.3g}: "
        "rare runs carry the moment. Trust the recursion there, or medians.",
    ]


def _caption(sizes: Sizes) -> str:
    return (
        f"SGD on single rows of least squares, {sizes.rows} x {sizes.features}, and its derivative "
        "by bl.Forward. Interpolation falls down to where rounding ends it.\nThe exact curves are "
        "recursions of moments: nothing is fitted to the runs. Constants of the dotted bound are "
        "reconstructed; rates meet the exact curve at one step."
    )


def _collect_curves(columns: list[Column]) -> dict[str, Any]:
    """The points of the figure."""
    return {
        column.regime.name: {
            measure: {
                "step": column.steps,
                "exact": column.curves.exact[which][column.steps - 1],
                "bound": column.curves.bound[which][column.steps - 1],
                **column.means[which]._asdict(),
            }
            for which, measure in enumerate(MEASURES)
        }
        for column in columns
    }


if __name__ == "__main__":
    sys.exit(base.command("sgd_derivatives", __doc__, run, FULL, QUICK, options=OPTIONS))
