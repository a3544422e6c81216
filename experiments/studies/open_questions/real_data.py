r"""The answers to the first three questions on six data sets, four of them real.

Ridge regression (synthetic, diabetes, wine) and logistic regression (synthetic, breast cancer,
digits), one log penalty. For each: how large both noises are, of one example at the solution,

    sigma_x^2 = E |grad f_i|^2,    sigma_D^2 = E |H_i D* + d grad f_i / d theta|^2,

and what they make of the hypergradient (`theory.find_influences`); the error of iterative over that
of implicit differentiation at equal oracle calls; the biases of the same run and of cross-sampling;
what averaging and SAGA gain. About 1 minute with --quick, else 4 minutes.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.noise import linearised, prediction, rules
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet
from experiments.studies.open_questions import iterative_vs_implicit as versus
from experiments.studies.open_questions import measure, problems, theory
from experiments.studies.open_questions import variance_reduction as reduction
from experiments.studies.open_questions.data_sets import (
    CLASSES,
    REGRESSION,
    load_classes,
    load_regression,
)


@dataclass(frozen=True)
class Sizes:
    """Gradients of single examples, runs per point, runs that resolve a bias, data sets a loss."""

    calls: int = 16_000
    runs: int = 300
    many: int = 4_000
    data_sets: int = 3


FULL = Sizes()
QUICK = Sizes(calls=8_000, runs=100, many=1_000, data_sets=2)

STEP = 0.4  # of the biases, over the largest curvature of one example


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """All questions on all data sets."""
    cases = make_cases(sizes.data_sets, seed)
    noises, ratios, biases, gains = [], [], [], []
    for at in track(cases, "data sets"):
        noises.append(describe_noise(at))
        ratios.append(_compare_ways(at, sizes, seed))
        biases.append(_measure_biases(at, sizes, seed))
        gains.append(_measure_gains(at, sizes, seed))
    findings, checks = _conclude(ratios, biases, gains)
    tables = {
        "both noises": noises,
        "iterative over implicit": ratios,
        "biases": biases,
        "gain over the last iterate": gains,
    }
    title = "Iterative and implicit differentiation on six data sets"
    return Result(title, _draw(ratios, biases, gains), tables, findings, checks)


def make_cases(count: int, seed: int) -> list[problems.Setting]:
    """Return ``count`` data sets of each loss."""
    ridge = [
        problems.make_setting(f"ridge, {n}", problems.RIDGE, *load_regression(n, seed), -2.5)
        for n in REGRESSION[:count]
    ]
    logistic = [
        problems.make_setting(f"logistic, {n}", problems.LOGISTIC, *load_classes(n, seed), -3.0)
        for n in CLASSES[:count]
    ]
    return [*ridge, *logistic]


def describe_noise(at: problems.Setting) -> dict[str, Any]:
    """Return the scale of both noises, and of what they make of the hypergradient."""
    given = at.problem, jnp.asarray(at.hyper), jnp.asarray(at.params), at.data
    here = linearised.linearise(*given, batch_size=1)
    noise = np.asarray(here.process.matrices @ here.process.fixed_point() - here.process.offsets)
    n, size = len(here.solution), float(np.linalg.norm(at.exact))
    of_x, of_D = (float(np.sqrt((part**2).sum(1).mean())) for part in (noise[:, :n], noise[:, n:]))
    iterate, derivative = theory.find_influences(at)
    return {
        "data": at.name,
        "examples": at.examples,
        "features": n,
        "L / mu": at.largest / at.smallest,
        "|x*|": float(jnp.linalg.norm(here.solution)),
        "|D*|": float(jnp.linalg.norm(here.derivative)),
        "sigma_x": of_x,
        "sigma_D": of_D,
        "iterate's part": float(iterate.std()) / size,
        "derivative's part": float(derivative.std()) / size,
        "correlation": float(np.corrcoef(iterate, derivative)[0, 1]),
    }


def _compare_ways(at: problems.Setting, sizes: Sizes, seed: int) -> dict[str, Any]:
    found = {}
    for name in ("forward, last", "forward, tail", "implicit, tail"):
        make = partial(_make_way, name, at, sizes.calls)
        found[name] = measure.find_best(at, make, versus.STEPS, sizes.runs, seed + 1)
    if any(chosen is None for chosen in found.values()):
        raise ValueError(f"{at.name}: no step of {versus.STEPS} gives a finite error.")
    last, tail, implicit = (found[name].accuracy for name in found)
    ratio, error = measure.compare_errors(tail, implicit)
    gain, gain_error = measure.compare_errors(last, tail)
    return {
        "data": at.name,
        "forward, tail": tail.mse,
        "implicit, tail": implicit.mse,
        "ratio": ratio,
        "s.e.": error,
        "predicted": theory.predict_ratio(at),
        "gain of averaging": gain,
        "its s.e.": gain_error,
    }


def _make_way(name: str, at: problems.Setting, calls: int, step: float) -> Any:
    return versus.make_estimator(name, at, calls, step / at.largest)


def _measure_biases(at: problems.Setting, sizes: Sizes, seed: int) -> dict[str, Any]:
    step = STEP / at.largest
    steps = int(8 / (step * at.smallest))
    row: dict[str, Any] = {"data": at.name, "steps": steps}
    for name in ("same run", "cross-sampling"):
        one = reduction.make_estimator(name, step, steps)
        got = measure.assess(measure.sample(at, one, sizes.many, seed + 7).grads, at.exact)
        row |= {name: float(got.bias[0]), f"{name}, s.e.": float(got.bias_error[0])}
    given = jnp.asarray(at.hyper), jnp.asarray(at.params), at.data, rules.sgd(step)
    found = jax.jit(partial(prediction.stationary_error, at.problem, batch_size=1))(*given)
    row["same run, predicted"] = float(found.error.bias[0]) / float(np.linalg.norm(at.exact))
    return row


def _measure_gains(at: problems.Setting, sizes: Sizes, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"data": at.name, "passes": sizes.calls / at.examples}
    found = {}
    for name in ("same run", "tail average", "SAGA"):
        steps = sizes.calls // reduction.PRICES[name]
        choices = reduction.REDUCED if name == "SAGA" else reduction.STEPS

        def make(s: float, name: str = name, steps: int = steps) -> Any:
            return reduction.make_estimator(name, s / at.largest, steps)

        found[name] = measure.find_best(at, make, choices, sizes.runs, seed + 3)
    for name in ("tail average", "SAGA"):
        both = found["same run"], found[name]
        if both[0] is None or both[1] is None:
            raise ValueError(f"{at.name}: no step gives {name} a finite error.")
        value, error = measure.compare_errors(both[0].accuracy, both[1].accuracy)
        row |= {name: value, f"{name}, s.e.": error}
    return row


def _conclude(ratios: Any, biases: Any, gains: Any) -> tuple[list[str], list[Check]]:
    far = [abs(np.log(r["ratio"] / r["predicted"])) * r["ratio"] / r["s.e."] for r in ratios]
    apart = [
        abs(b["same run"] - b["same run, predicted"]) / b["same run, s.e."]
        for b in biases
        if b["data"].startswith("ridge")
    ]
    harm = [b["data"] for b in biases if abs(b["cross-sampling"]) > abs(b["same run"])]
    findings = [
        "MSE of iterative over implicit differentiation, tail averages: "
        + "; ".join(
            f"{r['data']} {measure.show(r['ratio'], r['s.e.'])} (predicted {r['predicted']:.2f})"
            for r in ratios
        )
        + ".",
        "Averaging the tail divides the MSE of the last iterate by "
        f"{min(r['gain of averaging'] for r in ratios):.1f} to "
        f"{max(r['gain of averaging'] for r in ratios):.1f}.",
        "Same-run bias, measured and predicted: "
        + "; ".join(
            f"{b['data']} {measure.show(b['same run'], b['same run, s.e.'])}, "
            f"{b['same run, predicted']:.3f}"
            for b in biases
        )
        + f". Cross-sampling is the more biased on: {', '.join(harm) or 'none'}.",
        "SAGA divides the MSE of the last iterate of SGD by "
        + ", ".join(f"{g['SAGA']:.1e} ({g['passes']:.0f} passes)" for g in gains)
        + ".",
    ]
    checks = [
        below("ratio against its prediction, worst, in s.e.", max(far), 5),
        below("ridge: same-run bias against its prediction, worst, in s.e.", max(apart), 4),
        below(
            "1 / (gain of averaging), worst", max(1 / r["gain of averaging"] for r in ratios), 1.0
        ),
    ]
    return findings, checks


def _draw(ratios: Any, biases: Any, gains: Any) -> Any:
    made, axes = figure(1, 3, 13, 4.2)
    left, middle, right = axes[0]
    for j, (r, b) in enumerate(zip(ratios, biases, strict=True)):
        label = r["data"]
        measure.plot(left, j, [r], "predicted", "ratio", "s.e.", 4, ls="", label=label)
        points = [{**b, "x": b["same run, predicted"]}]
        measure.plot(middle, j, points, "x", "same run", "same run, s.e.", 4, ls="")
    for ax, name in ((left, "MSE of iterative over implicit"), (middle, "bias of the same run")):
        low, high = (f([*ax.get_xlim(), *ax.get_ylim()]) for f in (min, max))
        ax.plot([low, high], [low, high], color="0.4", linewidth=1)
        ax.set(xlabel="predicted", ylabel="measured", title=name)
    left.legend(fontsize=7.5)
    at = np.arange(len(gains))
    right.bar(at - 0.2, [g["tail average"] for g in gains], 0.4, label="tail average")
    right.bar(at + 0.2, [g["SAGA"] for g in gains], 0.4, label="SAGA")
    right.set_xticks(
        at, [g["data"].replace(", ", "\n").replace(" ", "\n") for g in gains], fontsize=7
    )
    right.set(yscale="log", title="gain over SGD's last iterate", ylabel="ratio of MSE")
    right.legend(fontsize=8)
    caption(made, "One penalty, batches of one, each method at its best step; bars: 4 s.e.")
    return made


if __name__ == "__main__":
    sys.exit(command("seed_real_data", __doc__, run, FULL, QUICK))
