"""What the estimators of this folder carry survives `tune`; their own numbers never recompile."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import ridge
from tests.compiling import compilations

CASE = ridge(seed=1)
SOLVER = bl.SGD(step_size=0.2, batch_size=4, momentum=0.5, sampling="epoch")
ESTIMATORS = {
    "ClosedForm": bl.ClosedForm(),
    "Evolution": bl.Evolution(SOLVER, 4, pairs=2),
    "OneStep": bl.OneStep(SOLVER, 4),
    "PES": bl.PES(SOLVER, 4, pairs=2, reset=3),
    "Penalty": bl.Penalty(SOLVER, 4),
    "Replicated": bl.Replicated(bl.Forward(SOLVER, 4), 2),
    "Richardson": bl.Richardson(bl.Forward(SOLVER, 4)),
    "UORO": bl.UORO(SOLVER, 4),
}


def tune(estimator: Any, steps: int, state: Any = None) -> bl.Result:
    arguments = (CASE.problem, estimator, optax.sgd(0.05), CASE.hyper, CASE.params, CASE.data)
    return bl.tune(*arguments, steps=steps, key=jax.random.key(3), state=state)


# What these carry is all their own; the others pass on what those of this list or `Forward` carry.
EXTENDED = pytest.mark.extended
MARKS = {"PES": (), "Penalty": EXTENDED, "Replicated": EXTENDED}  # the others are slow


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=MARKS.get(n, pytest.mark.slow)) for n in ESTIMATORS],
)
def test_a_run_cut_in_two_is_the_same_run_bit_for_bit(name: str) -> None:
    estimator = ESTIMATORS[name]
    whole, first = tune(estimator, 7), tune(estimator, 3)
    second = tune(estimator, 4, first.state)
    assert jax.tree.structure(whole.state) == jax.tree.structure(second.state)
    for a, b in zip(jax.tree.leaves(second.state), jax.tree.leaves(whole.state), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.hyper, second.hyper)


@pytest.mark.parametrize(("name", "field"), [("Penalty", "gamma"), ("PES", "sigma")])
def test_a_changed_number_compiles_nothing(name: str, field: str) -> None:
    def run(value: float) -> Any:
        estimator = dataclasses.replace(ESTIMATORS[name], **{field: value})
        arguments = (CASE.hyper, CASE.params, CASE.data, jax.random.key(0))
        return bl.hypergradient(CASE.problem, estimator, *arguments)[0].grad

    before = run(0.5)
    with compilations() as count:
        after = run(0.25)
    assert int(count) == 0
    assert not np.allclose(before, after)
