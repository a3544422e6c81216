"""The dense route: exact second moments, for inner problems of up to some dozens of params."""

import numpy as np

from bilevel.noise import FlatProblem
from bilevel.planning.analysis import Analysis
from bilevel.planning.measure import measure_problem
from bilevel.planning.predict import Run
from bilevel.planning.stationary import Noise

_QUADRATIC, _OTHER = 1 / 2, 1 / 4  # of the mean-square limit, up to where theory is trusted


def fits_dense(n: int, m: int, p: int) -> bool:
    """Return whether the dense route is a matter of seconds and of some hundred megabytes."""
    return n <= 48 and m * n**2 * (1 + p) <= 2e7 and m * n**3 * p <= 2e8


def analyse_densely(flat: FlatProblem, factors: dict[int | None, float]) -> Analysis:
    """Return the measured problem, bound to a prediction."""
    local, examples = measure_problem(flat)
    noise = Noise.from_examples(examples, local.h)
    quadratic = np.abs(local.third).max() <= 1e-12 * local.h[-1]
    share = _QUADRATIC if quadratic else _OTHER
    limits = {size: noise.limit(factor) for size, factor in factors.items()}
    trusted = {size: min(share * limit, 1 / local.steepest) for size, limit in limits.items()}

    def predict(step_size: float, batch_size: int | None) -> Run:
        return Run(local, noise, step_size, factors[batch_size])

    parts = np.linalg.norm(local.derivative) * np.linalg.norm(local.gradient)
    parts += np.linalg.norm(local.slope) * np.linalg.norm(local.solution)
    curvature = float(local.h[0]), float(local.h[-1])
    return Analysis(
        "dense", local.solution, local.exact, float(parts), curvature, limits, trusted, predict
    )
