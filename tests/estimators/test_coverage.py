"""The evidence held against known errors: a few of the problems of ``benchmarks.coverage``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from benchmarks import coverage
from benchmarks.coverage_cases import cases, linear_model
from bilevel.core import count_examples
from bilevel.estimators import budget
from bilevel.estimators.reference import find_reference
from bilevel.estimators.residuals import find_progress
from bilevel.testing import dense_hypergradient

KEY = jax.random.key(0)


@pytest.mark.parametrize("kind", ["ridge", "logistic", "quartic"])
def test_the_reference_is_the_dense_oracle(kind, x64):
    problem, data, hyper, params = linear_model(kind, 40, 3, smallest=0.1)
    found = find_reference(problem, hyper, params, data)
    exact = dense_hypergradient(problem, hyper, params, data)[1]
    np.testing.assert_allclose(found.grad, exact, rtol=1e-8)
    assert found.error(jnp.asarray(exact)) < 1e-8
    assert float(found.error(1.25 * jnp.asarray(exact))) == pytest.approx(0.25, rel=1e-6)


def test_a_param_that_nothing_reads_costs_nothing(x64):
    problem, data, hyper, params = linear_model("ridge", 40, 3)
    wider = bl.Problem(
        lambda w, h, b: problem.inner(w[:3], h, b), lambda w, h, b: problem.outer(w[:3], h, b)
    )
    found = find_reference(wider, hyper, jnp.zeros(4), data)
    np.testing.assert_allclose(
        found.grad, find_reference(problem, hyper, params, data).grad, rtol=1e-9
    )


@pytest.mark.parametrize("made", [bl.Reverse, bl.OneStep], ids=["Reverse", "OneStep"])
def test_first_order_and_exact_evidence_agree(made, x64, monkeypatch):
    """Up to a factor: first order takes the mixed derivatives for those at the last iterate."""
    problem, data, hyper, params = linear_model("ridge", 40, 3)
    estimator = made(bl.GradientDescent(0.1), 120)
    case = (problem, estimator, hyper, params, data, KEY)
    exact = bl.hypergradient(*case, max_error=np.inf)[0].evidence.residual_error
    monkeypatch.setattr(budget, "_DENSE", 0)
    jax.clear_caches()
    rough = bl.hypergradient(*case, max_error=np.inf)[0].evidence.residual_error
    jax.clear_caches()
    assert 0.5 < rough / exact < 2
    truth = dense_hypergradient(problem, hyper, params, data)[1]
    grad = bl.hypergradient(*case, max_error=np.inf)[0].grad
    error = np.linalg.norm(grad - truth) / np.linalg.norm(truth)
    assert float(exact) == pytest.approx(error, rel=1e-6)


def test_a_sampled_residual_is_right_on_average(x64):
    """The mean of its square over 400 samples of 32 rows is that over all rows, to 4 s.e."""
    problem, data, hyper, params = linear_model("ridge", 500, 3)
    near = params + 0.1

    def squared(key):
        rows = jax.random.randint(key, (32,), 0, count_examples(data.inner))
        inner = jax.tree.map(lambda x: x[rows], data.inner)
        some = bl.Data(inner=inner, outer=data.outer)
        one = jnp.ones(())
        residual, _ = find_progress(problem, hyper, params, near, some, one, sampled=True)
        return residual**2

    every = jax.jit(jax.vmap(squared))(jax.random.split(KEY, 400))
    whole, _ = find_progress(problem, hyper, params, near, data, jnp.ones(()))
    error = np.std(every) / 20
    assert abs(np.mean(every) - whole**2) < 4 * error
    assert error < 0.1 * whole**2


@pytest.mark.extended
def test_alarms_are_neither_false_nor_missing():
    with jax.enable_x64(True):
        rows = coverage.alarms(12)
    found = coverage.summarise(rows)
    assert found["good"] >= 3
    assert found["bad"] >= 3
    assert found["false alarms"] == found["silences"] == 0


@pytest.mark.extended
def test_intervals_cover_the_mean(x64):
    """Of 200 repetitions 95 %, within 4 standard errors of a share (1.5 % each)."""
    case = cases(quick=True)[0]
    for name, estimator in coverage.estimators(case):
        if name.startswith("Replicated(") and "Implicit" not in name:  # wider, as it says
            found = coverage.coverage(case, estimator, 200)
            assert found["applies"] == 1
            assert abs(found["mean"] - 0.95) < 4 * (0.95 * 0.05 / 200) ** 0.5, name


def test_a_bias_of_each_run_takes_its_noise_with_it(x64):
    """The error is that of the corrected copies, which are run here one by one."""
    case = cases(quick=True)[0]
    one = bl.Implicit(case.solver, 60, average=30, bias=True)
    arguments = case.hyper, case.params, case.data

    def run(estimator, key):
        return bl.hypergradient(case.problem, estimator, *arguments, key, max_error=np.inf)[0]

    every = [run(one, key) for key in jax.random.split(KEY, 4)]
    grad = np.array([estimate.grad[0] for estimate in every])
    bias = np.array([estimate.evidence.bias[0] for estimate in every])
    together = run(bl.Replicated(one, 4), KEY)
    corrected = (grad - bias).std(ddof=1) / 2
    np.testing.assert_allclose(together.evidence.corrected_error[0], corrected, rtol=1e-6)
    size = abs((grad - bias).mean())
    expected = np.hypot(bias.mean() / size, corrected / (size**2 - corrected**2) ** 0.5)
    np.testing.assert_allclose(together.relative_error, expected, rtol=1e-6)
    assert corrected < 0.5 * together.evidence.standard_error[0]
