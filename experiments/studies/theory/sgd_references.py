"""Two looks at the moments of `sgd_derivatives`: a reference case, and runs that are rare."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from bilevel.noise import Ridge
from bilevel.noise.moments import rules, run
from experiments.studies import base
from experiments.studies.theory.sgd_regimes import (
    Regime,
    compute_curves,
)
from experiments.studies.theory.sgd_runs import (
    RIDGE,
    compare_means,
    sample_runs,
    simulate,
)

# Ridge, one row per step: E |D_k - D*|^2 at k = 100, 1000, 10000, computed elsewhere.
RIDGE_MOMENTS = {
    "constant": (0.9409347, 0.07825044, 0.008649864),
    "decreasing": (0.1230221, 0.04025557, 0.004518999),
}


def hold_against_reference(runs: int, key: Any, track: base.Track) -> tuple[base.Table, base.Check]:
    """Hold ridge, theta the penalty, against numbers computed elsewhere: 10000 steps."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((50, 5)) * np.linspace(0.5, 1.5, 5)
    b = A @ rng.standard_normal(5) + 0.5 * rng.standard_normal(50)
    process = Ridge.from_data(A, b, 0.1, np.ones((5, 1)), batch_size=1)
    largest, k = (A**2).sum(1).max() + 0.1, np.arange(10_000)
    mu = np.linalg.eigvalsh(process.curvature)[0]
    schedules = {
        "constant": np.full(len(k), 0.05 / largest),
        "decreasing": 2 / (mu * (k + 2 * largest / mu)),
    }
    rows, data = [], bl.Data(inner=(A, b), outer=A)

    @jax.jit
    def follow(process: Any, start: Any, rule: Any) -> Any:
        return run(process, start, rule, lambda now: now.squared_errors()[1][0])[1]

    for name, steps in track(schedules.items(), "ridge against reference moments"):
        exact = follow(process, process.start(jnp.zeros(5)), rules.sgd(jnp.asarray(steps)))
        parts = jnp.asarray(0.1), data, process.solution, process.derivative, process.curvature
        keys = jax.random.split(key, runs)
        found = np.asarray(simulate(RIDGE, jnp.asarray(steps), *parts, keys, stride=100))[..., 1]
        for step, target in zip((100, 1000, 10_000), RIDGE_MOMENTS[name], strict=True):
            at = found[:, step // 100 - 1]
            error = at.std(ddof=1) / np.sqrt(runs)
            rows.append(
                {
                    "step size": name,
                    "step": step,
                    "reference": target,
                    "exact recursion": float(exact[step - 1]),
                    "mean of runs": float(at.mean()),
                    "standard error": float(error),
                    "z": float((at.mean() - target) / error),
                }
            )
    worst = max(abs(row["z"]) for row in rows)
    return rows, base.below(
        f"ridge against reference moments, largest |z| of {runs} runs", worst, 4.0
    )


def follow_rare_runs(regime: Regime, runs: int, key: Any, track: base.Track) -> base.Table:
    """Follow double interpolation at the step size 0.9: what a sample mean makes of it."""
    large = regime._replace(steps=np.full(200, 0.9))
    exact = compute_curves(large, bounded=False).exact[1]
    bar = lambda parts: track(parts, "rare runs")  # noqa: E731
    samples = sample_runs(large, runs, 1, 10, key, bar)[..., 1]
    at = np.array([60, 150, 200])
    found = compare_means(samples[:, at // 10 - 1], exact[at - 1])
    return [
        {
            "step": int(k),
            "exact": float(exact[k - 1]),
            "mean / exact": float(mean / exact[k - 1]),
            "median / exact": float(median / exact[k - 1]),
            "naive z": float(z),
        }
        for k, mean, median, z in zip(at, found.mean, found.median, found.z, strict=True)
    ]
