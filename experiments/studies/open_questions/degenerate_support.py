r"""Proximal SGD near a degenerate support: at which rate does the bias of its derivative fall?

Noise carries a coordinate across its kink as long as the step is above ``delta^2 / (h s^2)``, with
slack delta, curvature h and gradient noise s; `kink_theory.py` has the bias in closed form, as a
function of ``z = delta / (s (eta h)^{1/2})`` alone. It is held against one coordinate, and against
the lasso on three data sets, at three penalties and three steps each. About 40 s with --quick, else
1 to 2 minutes.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

import bilevel as bl
from experiments.studies.base import Check, Result, Track, below, caption, command, figure, quiet
from experiments.studies.open_questions import kinks, measure, problems
from experiments.studies.open_questions.data_sets import REGRESSION, load_regression
from experiments.studies.open_questions.kink_theory import predict_kink_bias, predict_support_bias


@dataclass(frozen=True)
class Sizes:
    """Slacks over s and step sizes of one coordinate; steps over 1/L, penalties, runs per point."""

    slacks: tuple[float, ...] = (-0.1, 0.0, 0.05, 0.15, 0.45)
    rates: tuple[float, ...] = (0.2, 0.05, 0.0125, 0.003125)
    steps: tuple[float, ...] = (0.8, 0.2, 0.05)
    shares: tuple[float, ...] = (0.5, 0.2, 0.1)
    runs: int = 200
    data_sets: tuple[str, ...] = REGRESSION


APART = 0.1  # |z| from which coordinates are taken one by one
FULL = Sizes()
QUICK = Sizes(slacks=(0.0, 0.15), rates=(0.05, 0.0125), steps=(0.8, 0.2), runs=60)


def _inner(w: Any, log_lam1: Any, batch: Any) -> Any:
    return jnp.mean((w[0] - batch) ** 2) / 2


def _outer(w: Any, log_lam1: Any, batch: Any) -> Any:
    return w[0]


ONE = bl.Problem(_inner, _outer, prox=kinks.soft_threshold)


def run(sizes: Sizes, seed: int = 0, track: Track = quiet) -> Result:
    """One coordinate against the closed form; the lasso on all data sets against its heuristic."""
    jobs = [(slack, rate) for slack in sizes.slacks for rate in sizes.rates]
    single = [
        _follow_coordinate(slack, rate, sizes, seed)
        for slack, rate in track(jobs, "one coordinate")
    ]
    whole = []
    for name in track(sizes.data_sets, "data sets"):
        X, y = load_regression(name, seed)
        n = len(y) // 2
        inner, outer = (X[:n], y[:n]), (X[n:], y[n:])
        for share in sizes.shares:
            whole += _follow_lasso(name, inner, outer, share, sizes, seed)
    findings, checks = _conclude(single, whole)
    tables = {"one coordinate": single, "lasso": whole}
    title = "Proximal SGD near a degenerate support"
    return Result(title, _draw(single, whole), tables, findings, checks)


def _follow_coordinate(slack: float, rate: float, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Mean derivative of one coordinate, h = lam1 = 1, over that off the kink, ``-lam1 / h``."""
    noise = np.random.default_rng(seed).standard_normal(400)
    noise *= 2 / np.linalg.norm(noise - noise.mean()) * len(noise) ** 0.5
    s = 2 / kinks.BATCH**0.5
    targets = 1 - slack * s + noise - noise.mean()
    data = bl.Data(inner=targets, outer=np.zeros(1))
    at = problems.Setting("one", ONE, np.zeros(1), np.zeros(1), data, np.ones(1), 1.0, 1.0)
    steps = int(6 / rate)
    forward = bl.Forward(kinks.ProximalSGD(rate), 5 * steps, average=4 * steps)
    shares = -measure.sample(at, forward, 2 * sizes.runs, seed + 1).grads[:, 0]
    z = slack / rate**0.5
    return {
        "slack / s": slack,
        "step x h": rate,
        "z": z,
        "share": float(shares.mean()),
        "s.e.": float(shares.std(ddof=1) / len(shares) ** 0.5),
        "closed form": predict_kink_bias(z),
    }


def _follow_lasso(
    name: str, inner: Any, outer: Any, share: float, sizes: Sizes, seed: int
) -> list[dict[str, Any]]:
    """Bias at every step, for the penalty that is ``share`` of the least that selects nothing."""
    X, y = inner
    log_lam1 = float(np.log(share * np.abs(X.T @ y).max() / len(y)))
    try:
        exact = kinks.solve_sparse(inner, outer, log_lam1, 0.0)
    except ValueError:  # a support that is about to change: there is no derivative
        return []
    mu = max(float(np.linalg.eigvalsh(X.T @ X / len(y))[0]), 0.02)
    largest = float((X**2).sum(1).max())
    hyper, data = np.array([log_lam1]), bl.Data(inner=inner, outer=outer)
    lasso = kinks.PROXIMAL["lasso"]
    at = problems.Setting(name, lasso, hyper, np.zeros(X.shape[1]), data, exact.grad, mu, largest)
    rows = []
    for times in sizes.steps:
        step = times / largest
        steps = int(3 / (step * mu))
        forward = bl.Forward(kinks.ProximalSGD(step), 2 * steps, average=steps)
        got = measure.assess(measure.sample(at, forward, sizes.runs, seed + 1).grads, exact.grad)
        predicted, nearest = predict_support_bias(inner, outer, log_lam1, step)
        rows.append(
            {
                "data": name,
                "lam1 / largest": share,
                "active": exact.active,
                "step x L": times,
                "smallest |z|": nearest,
                "bias": float(got.bias[0]),
                "s.e.": float(got.bias_error[0]),
                "predicted": predicted,
            }
        )
    return rows


def _conclude(single: Any, whole: Any) -> tuple[list[str], list[Check]]:
    apart = [(abs(r["share"] - r["closed form"]) - 4 * r["s.e."], r["step x h"]) for r in single]
    worst = max(gap / rate**0.5 for gap, rate in apart)
    measured, predicted = (np.array([r[k] for r in whole]) for k in ("bias", "predicted"))
    large = np.abs(measured) > 0.02
    ratio = measured[large] / predicted[large]
    low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
    alone = np.array([r["smallest |z|"] for r in whole]) > APART
    everywhere, correlation = (
        float(np.corrcoef(measured[part], predicted[part])[0, 1]) for part in (alone | True, alone)
    )
    findings = [
        f"One coordinate: the share of the free derivative is the closed form up to "
        f"{max(worst, 0):.2f} (step x h)^(1/2) beyond four standard errors, at {len(single)} pairs "
        "of slack and step.",
        f"Lasso, {len({r['data'] for r in whole})} data sets, {len(whole)} points: biases from "
        f"{measured.min():.2f} to {measured.max():.2f} of the hypergradient; measured over "
        f"predicted, where above 2 %: median {middle:.2f}, 80 % within {low:.2f} and {high:.2f}; "
        f"correlation {everywhere:.3f}, without coordinates nearer to their kinks than |z| = "
        f"{APART:g} {correlation:.3f} ({alone.sum()} points).",
    ]
    checks = [
        below("one coordinate: (gap - 4 s.e.) / (step x h)^(1/2), worst", worst, 0.25),
        Check(
            f"lasso: correlation of biases, |z| > {APART:g}",
            correlation,
            "above 0.9",
            correlation > 0.9,
        ),
        Check("lasso: median of measured / predicted", middle, "0.7 to 1.4", 0.7 < middle < 1.4),
    ]
    return findings, checks


def _draw(single: Any, whole: Any) -> Any:
    made, axes = figure(1, 2, 11, 4.4)
    left, right = axes[0]
    z = np.linspace(min(r["z"] for r in single) - 0.5, max(r["z"] for r in single) + 0.5, 300)
    left.plot(z, [predict_kink_bias(x) for x in z], color="0.3", label="closed form F(z)")
    left.plot(z[z > 1], 1 / (2 * z[z > 1] ** 2), ":", color="0.3", label="1 / (2 z^2)")
    left.plot(z, z < 0, "--", color="0.6", label="exact")
    for j, rate in enumerate(dict.fromkeys(r["step x h"] for r in single)):
        rows = [r for r in single if r["step x h"] == rate]
        measure.plot(left, j, rows, "z", "share", "s.e.", 4, ls="", label=f"step x h = {rate:g}")
    left.set(title="one coordinate", xlabel="z = slack / (s (step x h)^(1/2))")
    left.set(ylabel="mean derivative over that off the kink", ylim=(-0.05, 1.1))
    for j, name in enumerate(dict.fromkeys(r["data"] for r in whole)):
        rows = [r for r in whole if r["data"] == name]
        measure.plot(right, j, rows, "predicted", "bias", "s.e.", 4, ls="", label=name)
    ends = [f(r[k] for r in whole for k in ("bias", "predicted")) for f in (min, max)]
    right.plot(ends, ends, color="0.3", label="equal")
    right.set(title="lasso", xlabel="predicted bias, relative", ylabel="measured bias, relative")
    for ax in axes[0]:
        ax.legend(fontsize=8)
    caption(made, "Forward over proximal SGD, batches of 8, tail averaged; bars: 4 s.e.")
    return made


if __name__ == "__main__":
    sys.exit(command("seed_degenerate_support", __doc__, run, FULL, QUICK))
