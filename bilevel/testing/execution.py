"""Laws of execution: however the same few steps are run, the numbers are the same."""

from functools import partial

import jax
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bilevel.core import Estimate
from bilevel.estimators import hypergradient
from bilevel.solvers import GradientDescent
from bilevel.testing.problems import Case
from bilevel.testing.runs import (
    FEW,
    SEED,
    Factory,
    cast,
    count_traces,
    make_sgd,
    require_close,
    require_that,
    run_case,
    run_stochastic,
)
from bilevel.utils import axpy


def maps_over_keys(factory: Factory, case: Case) -> None:
    """``vmap`` over keys equals the loop."""
    case, estimator = cast(case), factory(make_sgd(case), FEW)

    def one(key: Array) -> Estimate:
        problem, hyper, params, data = case.problem, case.hyper, case.params, case.data
        return hypergradient(count_traces(problem)[0], estimator, hyper, params, data, key)[0]

    keys = jax.vmap(jax.random.key)(np.arange(3))
    mapped = jax.vmap(one)(keys)
    looped = jax.tree.map(lambda *leaves: np.stack(leaves), *(one(key) for key in keys))
    require_close("vmap over keys", mapped, looped)


def equals_its_python_loop(factory: Factory, case: Case) -> None:
    """With every ``lax.scan`` written out by Python, step by step, the numbers are the same."""
    case = cast(case)
    _, lower = run_stochastic(factory, case)
    expected = run_stochastic(factory, case, state=lower)
    estimator, problem = factory(make_sgd(case), FEW), count_traces(case.problem)[0]
    arguments = (case.hyper, lower, case.data, jax.random.key(SEED))
    with jax.disable_jit():
        written_out = jax.make_jaxpr(partial(estimator.step, problem))(*arguments)
    names = {equation.primitive.name for equation in written_out.eqns}
    require_that("scan" not in names, "a lax.scan is left that jax.disable_jit does not write out")
    found = jax.jit(jaxpr_as_fun(written_out))(*jax.tree.leaves(arguments))
    require_close("the Python loop", found, expected)


def takes_one_step_but_not_none(factory: Factory, case: Case) -> None:
    """No step is an error that says so; after one, params are where one step leads."""
    solver = GradientDescent(step_size=case.step_size)
    try:
        run_case(factory(solver, 0), case)
    except ValueError as error:
        require_that(
            "steps must be at least 1" in str(error), f"the message does not tell: {error}"
        )
    else:
        raise AssertionError("steps=0 was not refused")
    case = cast(case)
    estimate, lower = run_case(factory(solver, 1), case)
    slope = jax.jit(jax.grad(case.problem.inner))(case.params, case.hyper, case.data.inner)
    require_close("params", lower.params, axpy(-case.step_size, slope, case.params))
    finite = [np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(estimate.grad)]
    require_that(all(finite), f"the hypergradient of one step is not finite: {estimate.grad}")


def shards_over_examples(factory: Factory, case: Case) -> None:
    """With the examples spread over all devices the numbers are the same.

    Needs more than one device; on a CPU start Python with
    ``XLA_FLAGS=--xla_force_host_platform_device_count=4``. Examples that do not divide evenly are
    left out.
    """
    devices = np.array(jax.devices())
    require_that(devices.size > 1, "there is only one device: nothing can be sharded")
    case = cast(case)
    estimator, problem = factory(make_sgd(case), FEW), count_traces(case.problem)[0]

    def trimmed(leaf: Array) -> Array:
        return leaf[: len(leaf) // devices.size * devices.size]

    over_examples = NamedSharding(Mesh(devices, ("examples",)), PartitionSpec("examples"))
    whole = jax.tree.map(trimmed, case.data)
    spread = jax.device_put(whole, over_examples)
    arguments = (problem, estimator, case.hyper, case.params)
    found, expected = (
        hypergradient(*arguments, data, jax.random.key(SEED)) for data in (spread, whole)
    )
    require_close("sharded over examples", found, expected)
