"""Is a hypergradient right? Estimators against central differences of the value function."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.checks.cost import measure_cost
from bilevel.checks.growth import diagnose_growth
from bilevel.checks.report import CheckReport, CheckRow, Measured, Place, judge_estimator
from bilevel.core import Data, Estimator, Problem, freeze_losses
from bilevel.estimators import Forward, Implicit, Reverse, check_losses
from bilevel.linear import CG
from bilevel.solvers import GradientDescent, largest_curvature, minimise
from bilevel.spaces import free_coordinates
from bilevel.utils import (
    PyTree,
    as_float64,
    axpy,
    norm,
    require_positive,
    require_positive_int,
    require_smooth,
    require_variables,
    size,
)

_MOST_STEPS = 20_000  # gradient steps that the default estimators may take
_MOST_TANGENTS = 64  # Forward carries one tangent per hyperparameter


def check(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    estimators: Mapping[str, Estimator] | None = None,
    *,
    tol: float = 1e-4,
    epsilon: float = 1e-3,
    directions: int = 8,
    seed: int = 0,
    model_state: PyTree = None,
) -> CheckReport:
    """Compare estimators with central differences of ``h(hyper) = outer(w*(hyper), hyper)``.

    All in float64, whatever the current precision: the inner problem is solved to rounding by
    Newton's method at ``hyper ± epsilon d`` and ``hyper ± epsilon d / 2``, and the two differences
    are extrapolated (Richardson). Nothing is printed: ``str(report)`` is a table. It says at which
    start and which minimum it looked, whether the estimators' own evidence agrees with what was
    measured, and for reverse mode whether derivatives converge along the inner steps or explode.

    Parameters
    ----------
    problem, hyper, params, data : as for :func:`bilevel.hypergradient`.
    estimators : name -> estimator. By default Implicit, Reverse and (up to 64 hyperparameters)
        Forward, all on gradient descent with a step size from the measured curvature.
    tol : relative error that still counts as agreement.
    epsilon : step of the differences, in the units of ``hyper``; with ``problem.space`` in its free
        coordinates, and so are the slopes of the report.
    directions : up to so many hyperparameters every coordinate is checked, above so many random
        unit directions.
    seed : of the random directions and of the estimators' minibatches; of the one key that all
        losses of a stochastic problem see here, so that they are functions.
    model_state : at which the losses of a problem that ``has_state`` are held here.

    Raises
    ------
    ValueError : as :func:`bilevel.hypergradient` does; ``problem.start`` or ``problem.prox``; an
        inner problem that Newton's method cannot solve.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> report = bl.check(problem, 1.0, 0.0, data)
    >>> [row.name for row in report.rows], report.agrees
    (['Implicit', 'Reverse', 'Forward'], True)
    """
    problem = freeze_losses(problem, jax.random.key(seed), as_float64(model_state))
    require_smooth("bl.check", problem)
    require_variables("hyper", hyper)
    require_variables("params", params)
    require_positive("check", "tol", tol)
    require_positive("check", "epsilon", epsilon)
    require_positive_int("check", "directions", directions)
    with jax.enable_x64(True):
        hyper, params, data = as_float64(hyper), as_float64(params), as_float64(data)
        check_losses(problem, hyper, params, data)
        problem.require_inside(hyper)
        hyper = jax.tree.map(jnp.asarray, hyper)
        free = free_coordinates(problem.space, hyper)
        along = _directions(size(free), directions, seed)
        solution = minimise(problem, hyper, params, data).params
        value, reference, uncertainty = _differences(problem, free, solution, data, along, epsilon)
        if estimators is None:
            estimators = _defaults(problem, hyper, params, solution, data, seed)
        rows = []
        for name, estimator in estimators.items():
            # A refusal is an answer too: it stands in the table, and the others go on.
            try:
                key = jax.random.key(seed)
                estimate, after, cost = measure_cost(problem, estimator, hyper, params, data, key)
            except ValueError as error:
                nothing = np.full(len(along), np.nan)
                refusal = f"refused: {error}"
                rows.append(CheckRow(name, nothing, np.nan, None, None, False, refusal))
                continue
            grad = estimate.grad if not problem.space else problem.space.pull(free, estimate.grad)
            slopes = along @ np.asarray(ravel_pytree(grad)[0])
            away = _distance(after.params, solution)
            row = judge_estimator(
                name, Measured(slopes, estimate, away), reference, uncertainty, tol
            )
            growth = diagnose_growth(estimator, estimate.evidence)
            rows.append(replace(row, cost=cost, growth=growth))
        start, minimum = (_look(problem, hyper, at, data) for at in (params, solution))
        away = _distance(params, solution)
        found = tuple(rows), value, along, reference, uncertainty
        return CheckReport(*found, start, minimum, away)


def _look(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> Place:
    """Return what there is to say of a point: how far out, how high, how steep."""
    loss, gradient = jax.value_and_grad(problem.inner)(params, hyper, data.inner)
    return Place(float(norm(params)), float(loss), float(norm(gradient)))


def _distance(params: PyTree, solution: PyTree) -> float:
    """Return the distance from the minimum that was looked at, relative to its norm."""
    gap, size = norm(axpy(-1, solution, params)), norm(solution)
    return float(gap / jnp.where(size > 0, size, 1))


def _directions(p: int, most: int, seed: int) -> np.ndarray:
    if p <= most:
        return np.eye(p)
    drawn = np.random.default_rng(seed).standard_normal((most, p))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _differences(
    problem: Problem, free: PyTree, solution: PyTree, data: Data, along: PyTree, epsilon: float
) -> tuple[float, np.ndarray, float]:
    """Return ``(value, slopes, relative uncertainty)``, with inner solves from ``solution``."""
    flat, unravel = ravel_pytree(free)
    shifts = np.array([1.0, -1.0, 0.5, -0.5]) * epsilon
    moved = flat + (shifts[:, None, None] * along).reshape(-1, flat.size)

    def evaluate(point: PyTree) -> tuple[Array, Array]:
        there = unravel(point) if problem.space is None else problem.space.natural(unravel(point))
        reached = minimise(problem, there, solution, data)
        return problem.outer(reached.params, there, data.outer), reached.decrease

    values, left = jax.lax.map(evaluate, jnp.concatenate([flat[None], moved]))
    if not np.all(left <= 1e-12 * (1 + np.abs(values))):
        raise ValueError(
            "bl.check could not solve the inner problem: Newton's method would still gain "
            f"{float(jnp.max(left)):.3g}. Is the inner loss bounded below and twice "
            "differentiable, and hyper ± epsilon within its domain?"
        )
    plus, minus, half_plus, half_minus = np.asarray(values[1:]).reshape(4, -1)
    wide = (plus - minus) / (2 * epsilon)
    narrow = (half_plus - half_minus) / epsilon
    slopes = narrow + (narrow - wide) / 3
    change = np.linalg.norm(slopes - narrow) / max(np.linalg.norm(slopes), np.finfo(float).tiny)
    return float(values[0]), slopes, float(change)


def _defaults(
    problem: Problem, hyper: PyTree, params: PyTree, solution: PyTree, data: Data, seed: int
) -> dict[str, Estimator]:
    """Return estimators on gradient descent with step 0.9 / L, long enough to converge."""
    key = jax.random.key(seed)
    L = max(
        abs(float(largest_curvature(problem, hyper, at, data, key))) for at in (params, solution)
    )
    step_size = 0.9 / L
    gradient = jax.grad(problem.inner)

    def unfinished(carry: tuple[PyTree, ...]) -> PyTree:
        _, g, k = carry
        return (norm(g) > 1e-9 * L * norm(solution)) & (k < _MOST_STEPS // 2)

    def advance(carry: tuple[PyTree, ...]) -> PyTree:
        w, g, k = carry
        w = axpy(-step_size, g, w)
        return w, gradient(w, hyper, data.inner), k + 1

    start = (params, gradient(params, hyper, data.inner), 0)
    steps = 2 * max(int(jax.lax.while_loop(unfinished, advance, start)[2]), 10)
    solver = GradientDescent(step_size=step_size)
    estimators: dict[str, Estimator] = {
        "Implicit": Implicit(solver, steps, linear=CG(tol=1e-10)),
        "Reverse": Reverse(solver, steps),
    }
    if size(hyper) <= _MOST_TANGENTS:
        estimators["Forward"] = Forward(solver, steps)
    return estimators
