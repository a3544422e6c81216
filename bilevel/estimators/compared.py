"""The evidence of an estimator that has no equation of its derivative to look at."""

import jax
from jax import Array

from bilevel.core import Counts, Data, Estimator, Evidence, Problem
from bilevel.estimators.budget import Budget
from bilevel.estimators.rebuild import innermost_estimator, list_layers
from bilevel.estimators.reference import Reference, find_reference, steps_are_objective
from bilevel.estimators.residuals import find_progress
from bilevel.utils import PyTree


def compared_evidence(
    problem: Problem,
    hyper: PyTree,
    before: PyTree,
    params: PyTree,
    data: Data,
    key: Array,
    reference: Array,
    grad: PyTree,
    *,
    solver: object,
    passes: int,
    differentiable: bool = True,
) -> tuple[Evidence, Array]:
    """Return the inner residual, the error where the problem can be solved, and the reference.

    What is left of the noise in ``grad`` cannot be told from one run: where the problem is too
    large to be solved, or not ``differentiable``, only how far the inner problem is is known.
    """
    budget = Budget.of(problem, solver, data, params, passes)
    sample = budget.draw(data, key)
    residual, reference = find_progress(
        problem, hyper, before, params, sample, reference, budget.sampled
    )
    error = None
    if differentiable and budget.exact and not steps_are_objective(problem, hyper, params, data):
        error = find_reference(problem, hyper, params, data).error(grad)
    counts = Counts.of(hvps=0 if error is None else budget.hvps(params))
    return Evidence(residual, counts=counts, residual_error=error), reference


def find_exact(
    problem: Problem, estimator: Estimator, hyper: PyTree, params: PyTree, data: Data
) -> Reference | None:
    """Return what a wrapper may compare the gradient of ``estimator`` with, near ``params``.

    ``None`` where the problem is not small, where the steps themselves are tuned, and where the
    gradient is one along some directions only, or of many problems.
    """
    if any(hasattr(layer, "tasks") for layer in list_layers(estimator)):
        return None
    innermost = innermost_estimator(estimator)
    if jax.tree.leaves(getattr(innermost, "directions", None)):  # a number of them has no leaves
        return None
    budget = Budget.of(problem, getattr(innermost, "solver", None), data, params, 0)
    if not budget.exact or steps_are_objective(problem, hyper, params, data):
        return None
    return find_reference(problem, hyper, params, data)
