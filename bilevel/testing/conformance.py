"""What every estimator must satisfy: plain functions that raise ``AssertionError`` if it does not.

Each takes a factory ``(solver, steps) -> estimator`` and a :class:`bilevel.testing.Case`, in JAX's
current precision. For your own estimator, with pytest:

    @pytest.mark.parametrize("law", bl.testing.CONFORMANCE, ids=lambda law: law.__name__)
    def test_mine(law):
        law(MyEstimator, bl.testing.ridge(seed=0))

``shards_over_examples`` is not among them: it needs several devices, see its docstring.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Counts, Estimate, InnerState, Problem
from bilevel.solvers import GradientDescent
from bilevel.testing.accuracy import converges_at_its_rate as converges_at_its_rate
from bilevel.testing.accuracy import equals_dense_oracle as equals_dense_oracle
from bilevel.testing.accuracy import equals_finite_differences as equals_finite_differences
from bilevel.testing.execution import equals_its_python_loop as equals_its_python_loop
from bilevel.testing.execution import maps_over_keys as maps_over_keys
from bilevel.testing.execution import shards_over_examples as shards_over_examples
from bilevel.testing.execution import takes_one_step_but_not_none as takes_one_step_but_not_none
from bilevel.testing.problems import Case
from bilevel.testing.runs import (
    FEW,
    Factory,
    cast,
    count_traces,
    require_that,
    run_converged,
    run_stochastic,
)
from bilevel.utils import PyTree, dtype, norm


def keeps_structure(factory: Factory, case: Case) -> None:
    """``grad`` is like ``hyper``, ``value`` a scalar; the state is alike from call to call."""
    case = cast(case)
    estimate, lower = run_stochastic(factory, case)
    _, following = run_stochastic(factory, case, state=lower)
    require_that(isinstance(estimate, Estimate), "step must return an Estimate first")
    require_that(isinstance(lower, InnerState), "step must return a InnerState second")
    _alike("grad", estimate.grad, case.hyper)
    _alike("value", estimate.value, jnp.zeros((), dtype(case.hyper)))
    _alike("params", lower.params, case.params)
    _alike("state", following, lower)


def repeats_with_its_key(factory: Factory, case: Case) -> None:
    """The same key gives the same numbers bit for bit, another key other minibatches."""
    first, _ = run_stochastic(factory, case, seed=1)
    again, _ = run_stochastic(factory, case, seed=1)
    other, _ = run_stochastic(factory, case, seed=2)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    require_that(
        bool(first.value != other.value), "the key does not reach the solver's minibatches"
    )


def compiles_once(factory: Factory, case: Case) -> None:
    """A changed step size, hyper or batch of data, and a carried state, trace nothing again."""
    _, lower = run_stochastic(factory, case)
    traces = count_traces(case.problem)[1]
    before = len(traces)
    half = dataclasses.replace(case, step_size=case.step_size / 2)
    moved = dataclasses.replace(case, hyper=jax.tree.map(lambda h: h - 0.5, case.hyper))
    reversed_rows = jax.tree.map(lambda leaf: leaf[::-1].copy(), case.data)
    for changed in (half, moved, dataclasses.replace(case, data=reversed_rows)):
        run_stochastic(factory, changed)
    run_stochastic(factory, case, state=lower)
    require_that(before > 0, "the inner loss was never evaluated")
    require_that(len(traces) == before, f"traced the inner loss {len(traces) - before} times again")


def reports_evidence(factory: Factory, case: Case) -> None:
    """The residual is the one that can be recomputed; counts are counted; all is finite."""
    case = cast(case)
    for estimate, lower in (run_converged(factory, case), run_stochastic(factory, case)):
        evidence = estimate.evidence
        end, begun = (
            float(_gradient_norm(case.problem, params, case.hyper, case.data.inner))
            for params in (lower.params, case.params)
        )
        eps = float(jnp.finfo(dtype(case.hyper)).eps)
        np.testing.assert_allclose(evidence.inner_residual, end / begun, rtol=1e-3, atol=100 * eps)
        require_that(isinstance(evidence.counts, Counts), "evidence.counts must be Counts")
        require_that(int(evidence.counts.gradients) >= 1, "no inner gradient was counted")
        finite = [np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(evidence)]
        require_that(all(finite), f"evidence is not finite: {evidence}")
    require_that(
        float(run_converged(factory, case)[0].evidence.inner_residual) < 1000 * eps,
        "the residual is not small although the solver has converged",
    )


def refuses_what_it_cannot_see(factory: Factory, case: Case) -> None:
    """A hyperparameter that nothing reads is an error that names it, never a silent 0."""

    def inner(params: PyTree, hyper: PyTree, batch: PyTree) -> Array:
        return case.problem.inner(params, hyper["used"], batch)

    def outer(params: PyTree, hyper: PyTree, batch: PyTree) -> Array:
        return case.problem.outer(params, hyper["used"], batch)

    blind = dataclasses.replace(
        case,
        problem=dataclasses.replace(case.problem, inner=inner, outer=outer),
        hyper={"used": case.hyper, "unread": np.ones(2)},
    )
    try:
        run_stochastic(factory, blind)
    except ValueError as error:
        require_that(
            "hyper['unread']" in str(error), f"the message does not name the leaf: {error}"
        )
    else:
        raise AssertionError("a hyperparameter that nothing reads was not refused")


def shows_its_settings(factory: Factory, case: Case) -> None:
    """Equal settings compare equal, others do not; a round trip as a pytree changes nothing."""
    estimator = factory(GradientDescent(step_size=0.25), FEW)
    require_that(estimator == factory(GradientDescent(step_size=0.25), FEW), "equal ones differ")
    require_that(estimator != factory(GradientDescent(step_size=0.5), FEW), "others compare equal")
    leaves, treedef = jax.tree.flatten(estimator)
    require_that(
        jax.tree.unflatten(treedef, leaves) == estimator, "the pytree round trip changes it"
    )
    require_that(
        0.25 in leaves, "the solver's step size is not a leaf: changing it would recompile"
    )
    require_that("0.25" in repr(estimator), f"settings do not show in {estimator!r}")


CONFORMANCE: tuple[Callable[[Factory, Case], None], ...] = (
    equals_dense_oracle,
    equals_finite_differences,
    converges_at_its_rate,
    keeps_structure,
    repeats_with_its_key,
    maps_over_keys,
    equals_its_python_loop,
    takes_one_step_but_not_none,
    compiles_once,
    reports_evidence,
    refuses_what_it_cannot_see,
    shows_its_settings,
)


@partial(jax.jit, static_argnames="problem")
def _gradient_norm(problem: Problem, params: PyTree, hyper: PyTree, batch: PyTree) -> Array:
    return norm(jax.grad(problem.inner)(params, hyper, batch))


def _alike(name: str, got: PyTree, expected: PyTree) -> None:
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), t) for t in (got, expected)
    ]
    require_that(shapes[0] == shapes[1], f"{name} is {shapes[0]}, expected {shapes[1]}")
