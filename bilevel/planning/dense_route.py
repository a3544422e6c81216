"""The dense route: exact second moments, for inner problems of up to some dozens of params."""

import numpy as np

from bilevel.noise import FlatProblem, prediction
from bilevel.planning.analysis import Analysis
from bilevel.planning.limits import find_step_limit
from bilevel.planning.measure import measure_implicit, measure_problem
from bilevel.planning.orders import Gradients, choose_orders, follow_orders
from bilevel.planning.predict import Run
from bilevel.planning.reduced import Reduced
from bilevel.planning.scheme import Scheme
from bilevel.planning.shuffled_run import ShuffledRun
from bilevel.planning.stationary import Noise, StepResponse


def fits_dense(n: int, m: int, p: int) -> bool:
    """Return whether the dense route is a matter of seconds and of some hundred megabytes."""
    return n <= 48 and m * n**2 * (1 + p) <= 2e7 and m * n**3 * p <= 2e8


def analyse_densely(
    flat: FlatProblem,
    factors: dict[int | None, float],
    scheme: Scheme,
    *,
    compare: bool = False,
) -> Analysis:
    """Return the measured problem, bound to a prediction; of all estimators if they ``compare``."""
    local, examples = measure_problem(flat)
    noise = Noise.from_examples(examples, local.h)
    quadratic = np.abs(local.third).max() <= 1e-12 * local.h[-1]
    share = prediction.trusted_share(bool(quadratic))
    limits = {size: find_step_limit(noise, scheme, factor) for size, factor in factors.items()}
    trusted = {size: min(share * limit, 1 / local.steepest) for size, limit in limits.items()}

    implicit = measure_implicit(flat, local) if compare else local
    reduced = Reduced(local, examples) if compare and quadratic else None

    gradients, orders = Gradients(examples), {}
    if scheme.shuffles:
        slots = len(scheme.step_matrices(1.0)[1])
        orders = {size: choose_orders(gradients, slots, size) for size in factors if size}

    def predict(step_size: float, batch_size: int | None, reads: str) -> Run | ShuffledRun:
        read, cross = implicit if reads == "implicit" else local, reads == "cross"
        response = StepResponse(scheme, local.h, step_size)
        run = Run(read, noise, response, factors[batch_size], cross=cross)
        if batch_size is None or batch_size not in orders:
            return run
        rule = scheme.step_matrices(step_size)
        return ShuffledRun(run, follow_orders(gradients, rule, batch_size, orders[batch_size]))

    parts = np.linalg.norm(local.derivative) * np.linalg.norm(local.gradient)
    parts += np.linalg.norm(local.slope) * np.linalg.norm(local.solution)
    curvature = float(local.h[0]), float(local.h[-1])
    return Analysis(
        "dense",
        local.solution,
        local.exact,
        float(parts),
        curvature,
        limits,
        trusted,
        predict,
        reduced,
    )
