"""Is the evidence true? Intervals against exact hypergradients, alarms against known errors.

    python -m benchmarks.coverage [--repeats 500] [--problems 60] [--quick] [--json FILE]
                                  [--plot FILE] [--only alarms] [--first-order]

Two tables. The first repeats every estimator that reports a standard error on problems with known
answers and counts how often its 95 % interval covers the mean of all runs (is the noise right?) and
the exact hypergradient of the dense oracle (is all of it right?). The second draws problems and
settings at random and compares ``estimate.relative_error`` with the true error: an alarm (above .5)
where the error is below .05 is false, no alarm where it is above .5 is a silence. These problems
are small, so the evidence solves them; ``--first-order`` makes it use what large problems have.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from benchmarks.coverage_cases import Case, cases, estimators, random_case
from benchmarks.timing import single_thread
from bilevel.estimators import budget

LEVEL, ALARM, GOOD = 0.95, 0.5, 0.05


class Runs(NamedTuple):
    """Of all repetitions: gradients, standard errors, interval ends ``[R, p]``, errors ``[R]``."""

    grad: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    relative: np.ndarray


def repeat(case: Case, estimator: Any, repeats: int, seed: int = 0) -> Runs:
    """``repeats`` cold calls with keys of their own."""
    # The theory of 40 params takes half a gigabyte a run.
    chunk = 50 if sum(np.size(x) for x in jax.tree.leaves(case.params)) < 20 else 5

    def one(key: jax.Array) -> list[Any]:
        estimate, _ = bl.hypergradient(
            case.problem, estimator, case.hyper, case.params, case.data, key
        )
        ends = estimate.interval(LEVEL)
        is_pair = lambda x: isinstance(x, tuple)  # noqa: E731
        low, high = (jax.tree.map(lambda x, i=i: x[i], ends, is_leaf=is_pair) for i in (0, 1))
        parts = estimate.grad, estimate.evidence.standard_error, low, high
        return [*(ravel_pytree(tree)[0] for tree in parts), estimate.relative_error]

    run = jax.jit(jax.vmap(one))
    keys = jax.random.split(jax.random.key(seed), repeats)
    parts = [run(keys[i : i + chunk]) for i in range(0, repeats, chunk)]
    return Runs(
        *(np.concatenate([np.asarray(x) for x in column]) for column in zip(*parts, strict=True))
    )


def coverage(case: Case, estimator: Any, repeats: int) -> dict[str, float]:
    """Shares of intervals that cover, the reported over the true noise, and alarms."""
    runs, exact = repeat(case, estimator, repeats), case.exact()
    centre, half = (runs.low + runs.high) / 2, (runs.high - runs.low) / 2
    applies = np.all(np.isfinite(half), 1)
    mean = centre.mean(0)
    true = np.linalg.norm(runs.grad - exact, axis=1) / np.linalg.norm(exact)
    alarm = runs.relative > ALARM
    within = np.abs(centre - exact) <= half
    return {
        "applies": float(applies.mean()),
        "mean": float((np.abs(centre - mean) <= half)[applies].mean()) if applies.any() else np.nan,
        "exact": float(within[applies].mean()) if applies.any() else np.nan,
        "noise": float(np.median(runs.error[applies] / runs.grad.std(0)))
        if applies.any()
        else np.nan,
        "error": float(np.median(true)),
        "reported": float(np.median(runs.relative)),
        "false": float((alarm & (true < GOOD)).sum() / max(1, (true < GOOD).sum())),
        "silent": float((~alarm & (true > ALARM)).sum()),
    }


def alarms(problems: int) -> list[dict[str, Any]]:
    """True and reported relative errors, one row a problem."""
    rows = []
    for seed in range(problems):
        case, name, estimator = random_case(seed)
        estimate, _ = bl.hypergradient(
            case.problem,
            estimator,
            case.hyper,
            case.params,
            case.data,
            jax.random.key(seed),
            max_error=np.inf,
        )
        exact, grad = case.exact(), np.asarray(ravel_pytree(estimate.grad)[0])
        true = float(np.linalg.norm(grad - exact) / np.linalg.norm(exact))
        true = true if np.isfinite(true) else np.inf
        rows.append(
            {
                "case": case.name,
                "estimator": name,
                "steps": case.steps,
                "error": true,
                "reported": float(estimate.relative_error),
            }
        )
        line = "{case:16} {estimator:18} {steps:5d} {error:8.3g} {reported:8.3g}"
        print(line.format(**rows[-1]), flush=True)
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many were good and alarmed, how many bad and silent."""
    good, bad = [
        [r for r in rows if keep(r["error"])] for keep in (lambda e: e < GOOD, lambda e: e > ALARM)
    ]
    return {
        "good": len(good),
        "false alarms": sum(r["reported"] > ALARM for r in good),
        "bad": len(bad),
        "silences": sum(not r["reported"] > ALARM for r in bad),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Reported against true error, log-log, with the alarm line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5))
    ends = 1e-7, 30.0
    for name in sorted({row["estimator"] for row in rows}):
        mine = [row for row in rows if row["estimator"] == name]
        points = [np.clip([row[key] for row in mine], *ends) for key in ("error", "reported")]
        axes.loglog(*points, "o", label=name, alpha=0.8)
    axes.plot(ends, ends, "-", color="0.6", linewidth=1)
    axes.axhline(ALARM, color="tab:red", linestyle="--", label="alarm")
    axes.set(xlabel="true relative error", ylabel="estimate.relative_error", xlim=ends, ylim=ends)
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="six problems")
    parser.add_argument(
        "--json", type=Path, help="write both tables there, row by row; rows that it has are kept"
    )
    parser.add_argument("--plot", type=Path, help="draw the second table there")
    parser.add_argument("--only", choices=("coverage", "alarms"), help="one of the tables")
    parser.add_argument("--first-order", action="store_true", help="no dense solution")
    given = parser.parse_args(arguments)
    single_thread()
    jax.config.update("jax_enable_x64", True)
    if given.first_order:
        budget._DENSE = 0
    tables: dict[str, list] = {"coverage": [], "alarms": []}
    if given.json and given.json.exists():
        tables |= json.loads(given.json.read_text())
    if given.only != "alarms":
        tabulate_coverage(given, tables)
    if given.only != "coverage":
        tables["alarms"] = alarms(given.problems)
        print(summarise(tables["alarms"]))
    if given.plot:
        plot(tables["alarms"], given.plot)
    save(given.json, tables)


def save(path: Path | None, tables: dict[str, list]) -> None:
    """Write the tables as they are by now."""
    if path:
        path.write_text(json.dumps(tables, indent=1))


def tabulate_coverage(given: argparse.Namespace, tables: dict[str, list]) -> None:
    """Print the first table row by row, and add its rows to ``tables``."""
    table = tables["coverage"]
    have = {(row["problem"], row["estimator"]) for row in table}
    columns = ("applies", "mean", "exact", "noise", "error", "reported", "false", "silent")
    print(f"{'problem':24} {'estimator':24} " + " ".join(f"{name:>8}" for name in columns))
    for case in cases(given.quick):
        for name, estimator in estimators(case):
            if (case.name, name) in have:
                continue
            row = {
                "problem": case.name,
                "estimator": name,
                **coverage(case, estimator, given.repeats),
            }
            table.append(row)
            numbers = " ".join(f"{value:8.3f}" for value in list(row.values())[2:])
            print(f"{case.name:24} {name:24} {numbers}", flush=True)
            save(given.json, tables)


if __name__ == "__main__":
    main(sys.argv[1:])
