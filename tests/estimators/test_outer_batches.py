"""Minibatches of the outer loss: unbiased, and their noise is in the standard error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.draws import rows_by_hand

CASE = bl.testing.ridge(seed=0)
SOLVER = bl.GradientDescent(0.1)
ESTIMATORS = {
    "Forward": bl.Forward(SOLVER, 20, outer_batch_size=3),
    "Reverse": bl.Reverse(SOLVER, 20, outer_batch_size=3),
    "OneStep": bl.OneStep(SOLVER, 20, last=20, outer_batch_size=3),
    "Implicit": bl.Implicit(SOLVER, 20, outer_batch_size=3),
    "Evolution": bl.Evolution(SOLVER, 20, outer_batch_size=3),
    "PES": bl.PES(SOLVER, 20, outer_batch_size=3),
    "UORO": bl.UORO(SOLVER, 20, outer_batch_size=3),
    "Penalty": bl.Penalty(SOLVER, 20, outer_batch_size=3),
    "ClosedForm": bl.ClosedForm(outer_batch_size=3),
    "Auto": bl.Auto(outer_batch_size=3),
}


def estimate(estimator, key, data=CASE.data):
    arguments = CASE.problem, estimator, CASE.hyper, CASE.params, data, key
    return bl.hypergradient(*arguments, evidence="off")[0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_value_is_that_of_the_rows_that_the_key_draws(name):
    key = jax.random.key(1)
    arguments = CASE.problem, ESTIMATORS[name], CASE.hyper, CASE.params, CASE.data, key
    got, after = bl.hypergradient(*arguments, evidence="off", max_error=np.inf)
    n = len(CASE.data.outer[1])
    rows = rows_by_hand(bl.loss_key(key, "rows"), 3, n)
    some = jax.tree.map(lambda x: x[rows], CASE.data.outer)
    want = CASE.problem.outer(after.params, CASE.hyper, some)
    np.testing.assert_allclose(got.value, want, rtol=1e-5)


@pytest.mark.parametrize("name", ["Forward", "Reverse", "Implicit"])
def test_unbiased_with_an_honest_standard_error(name):
    estimator, keys = ESTIMATORS[name], jax.random.split(jax.random.key(0), 2000)
    grads = jax.vmap(lambda key: estimate(estimator, key).grad)(keys)
    whole = estimate(type(estimator)(SOLVER, 20), keys[0]).grad
    spread = np.std(grads, 0, ddof=1)
    assert np.all(spread > 0.01 * np.abs(whole))
    assert np.all(np.abs(np.mean(grads, 0) - whole) < 4 * spread / 2000**0.5)
    replicated = bl.Replicated(estimator, 64)
    errors = [estimate(replicated, key).evidence.standard_error for key in keys[:4]]
    np.testing.assert_allclose(np.mean(errors, 0), spread / 8, rtol=0.25)


def test_evolution_has_the_noise_of_the_rows_in_its_standard_error():
    # One row of n decides: without it no pair differs.
    problem = bl.Problem(lambda w, h, x: (w - h) ** 2, lambda w, h, x: jnp.mean(x) * w)
    data = bl.Data(inner=jnp.zeros(1), outer=jnp.array([0.0, 0.0, 0.0, 4.0]))
    estimator = bl.Evolution(bl.GradientDescent(0.5), 1, pairs=256, outer_batch_size=1)
    at = problem, estimator, jnp.array(1.0), jnp.array(0.0), data, jax.random.key(0)
    got = bl.hypergradient(*at, evidence="off")[0]
    # Slopes are 4 with probability 1/4, else 0: standard deviation 3**0.5.
    np.testing.assert_allclose(got.evidence.standard_error, 3**0.5 / 16, rtol=0.15)
    assert abs(got.grad - 1) < 5 * 3**0.5 / 16


@pytest.mark.parametrize(("size", "words"), [(10_000, "larger than the number"), (0, "at least 1")])
def test_sizes_out_of_range_are_refused(size, words):
    with pytest.raises(ValueError, match=words):
        estimate(bl.Reverse(SOLVER, 2, outer_batch_size=size), jax.random.key(0))
