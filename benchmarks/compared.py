"""Error against gradients of six estimators: bl.plan(..., compare=True) beside real runs of each.

python -m benchmarks.compared --plot docs/img/compared.png
"""

import argparse
from dataclasses import replace

import numpy as np

import bilevel as bl
from benchmarks.planner import measured
from benchmarks.planner_cases import penalised, squares

MEASURED = (0.2, 0.05)  # of the errors that are asked for
LONGEST = 3000  # steps of a run that is measured


def main() -> None:
    """Print the comparison, and for some of its entries the error of real runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--plot")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 5)) * np.logspace(0, -0.5, 5)
    y = X @ rng.standard_normal(5) + rng.standard_normal(400)
    data = bl.Data(inner=(X[:200], y[:200]), outer=(X[200:], y[200:]))
    problem = bl.Problem(penalised(squares), squares, quadratic=True)
    parts = problem, np.asarray(-2.0), np.zeros(5), data
    plan = bl.plan(*parts, batch_sizes=(1, 4, 16, 64), compare=True)
    assert plan.comparison is not None
    print(plan.comparison, "\n")
    print("| estimator | asked | predicted | measured | gradients |\n|---|---:|---:|---:|---:|")
    points = []
    for name, row in plan.comparison.settings.items():
        for asked, one in zip(plan.comparison.tolerances, row, strict=True):
            short = getattr(one.estimator, "steps", LONGEST + 1) <= LONGEST
            if asked in MEASURED and short:
                run = replace(plan, estimator=one.estimator)
                size, error, _, _ = measured(parts, run, args.runs)
                points.append((one.cost, size, 2 * error))
                print(
                    f"| {name} | {asked:g} | {one.error:.3g} | {size:.3g} ± {error:.1g} | "
                    f"{one.cost:.2g} |",
                    flush=True,
                )
    if args.plot:
        from experiments.studies.base import figure

        made, axes = figure(1, 1, 8, 5)
        plan.comparison.draw(axes[0][0])
        cost, size, bars = np.array(points).T
        axes[0][0].errorbar(cost, size, bars, fmt="k.", label="measured, 2 s.e.")
        axes[0][0].legend()
        made.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
