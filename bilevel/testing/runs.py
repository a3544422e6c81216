"""How the laws run an estimator: always through :func:`bilevel.hypergradient`.

Every law asks for one of two programs, a converged and a stochastic one, so that the laws of one
estimator on one case share what they compile.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Estimate, Estimator, InnerState, Problem
from bilevel.estimators import hypergradient
from bilevel.solvers import SGD, GradientDescent, Solver
from bilevel.testing.problems import Case
from bilevel.utils import PyTree

Factory = Callable[[Solver, int], Estimator]
FEW = 4  # solver steps where convergence does not matter; the fourth batch of 7 ends an epoch of 23
SEED = 0


def run_converged(
    factory: Factory, case: Case, step_size: float | None = None
) -> tuple[Estimate, InnerState]:
    """Run full-batch gradient descent for ``case.steps``, by default at the case's step size."""
    solver = GradientDescent(step_size=case.step_size if step_size is None else step_size)
    return run_case(factory(solver, case.steps), case)


def run_stochastic(
    factory: Factory, case: Case, seed: int = 0, state: InnerState | None = None
) -> tuple[Estimate, InnerState]:
    """Run a few steps of SGD, the batch not a divisor of the examples."""
    return run_case(factory(make_sgd(case), FEW), case, seed, state)


def run_case(
    estimator: Estimator, case: Case, seed: int = 0, state: InnerState | None = None
) -> tuple[Estimate, InnerState]:
    """Return one call of the estimator."""
    problem, hyper, params, data = case.problem, case.hyper, case.params, case.data
    return hypergradient(
        count_traces(problem)[0], estimator, hyper, params, data, jax.random.key(seed), state=state
    )


@functools.lru_cache(maxsize=32)
def count_traces(problem: Problem) -> tuple[Problem, list[None]]:
    """Return the problem, and a list that grows whenever its inner loss is traced."""
    traces: list[None] = []

    def inner(params: PyTree, hyper: PyTree, batch: PyTree) -> Array:
        traces.append(None)
        return problem.inner(params, hyper, batch)

    return dataclasses.replace(problem, inner=inner), traces


def make_sgd(case: Case) -> SGD:
    """Return the solver of :func:`run_stochastic`."""
    return SGD(step_size=case.step_size / 4, batch_size=7, momentum=0.5, sampling="epoch")


def cast(case: Case) -> Case:
    """Return the case with JAX arrays in the current precision."""
    arrays = jax.tree.map(jnp.asarray, (case.hyper, case.params, case.data))
    return dataclasses.replace(case, hyper=arrays[0], params=arrays[1], data=arrays[2])


def require_close(name: str, got: PyTree, expected: PyTree) -> None:
    """Raise unless two trees are equal up to rounding: 200 units, and 1 where things are counted.

    Where a tolerance ends an iteration the last bits decide whether it takes one step more.
    """
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        inexact = jnp.issubdtype(b.dtype, jnp.inexact)
        tolerance = 200 * float(jnp.finfo(b.dtype).eps) if inexact else 0.0
        atol = 1 if jnp.issubdtype(b.dtype, jnp.integer) else tolerance
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=atol, err_msg=name)


def require_that(holds: bool, message: str) -> None:
    """Raise unless a condition holds: an ``assert`` that no optimisation removes."""
    if not holds:
        raise AssertionError(message)
