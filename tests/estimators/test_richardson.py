"""Richardson: the O(step size) bias of constant-step SGD, found and removed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import dense_hypergradient, logistic, ridge

pytestmark = pytest.mark.usefixtures("x64")


def run(case: Any, estimator: Any, seed: int = 0) -> bl.Estimate:
    key = jax.random.key(seed)
    return bl.hypergradient(case.problem, estimator, case.hyper, case.params, case.data, key)[0]


@pytest.mark.extended
def test_removes_the_bias_of_sgd_on_a_loss_that_is_not_quadratic() -> None:
    """Logistic ridge, 4 000 chains: 4 standard errors resolve the bias without, not with."""
    case = logistic(seed=0)
    value, grad = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    plain = bl.Forward(bl.SGD(0.2, batch_size=2), steps=120)
    without = run(case, bl.Replicated(plain, 4000))
    found = run(case, bl.Replicated(bl.Richardson(plain), 4000))
    error = float(without.grad - grad)
    assert abs(error) > 8 * without.evidence.standard_error
    assert abs(found.grad - grad) < 4 * found.evidence.standard_error  # false alarm: 6e-5
    assert 4 * found.evidence.standard_error < abs(error) / 2
    assert abs(found.value - value) < abs(without.value - value) / 4


def test_is_two_runs_with_the_same_minibatches() -> None:
    case, steps = logistic(seed=1), 9
    solver = bl.SGD(0.1, batch_size=3, momentum=0.5, sampling="epoch")
    found = run(case, bl.Richardson(bl.Reverse(solver, steps)))
    fine, coarse = (
        run(case, bl.Reverse(bl.SGD(s, batch_size=3, momentum=0.5, sampling="epoch"), steps))
        for s in (0.1, 0.2)
    )
    np.testing.assert_allclose(found.grad, 2 * fine.grad - coarse.grad, rtol=1e-10)
    np.testing.assert_allclose(found.value, 2 * fine.value - coarse.value, rtol=1e-10)
    np.testing.assert_allclose(
        found.evidence.inner_residual, fine.evidence.inner_residual, rtol=1e-10
    )


@pytest.mark.parametrize("copies", [1, 4])
def test_an_error_that_no_step_size_explains_is_reported(copies: int) -> None:
    """Damping, which both chains have, and steps that are too few for either."""
    case = ridge(seed=0)
    exact = dense_hypergradient(case.problem, case.hyper, case.params, case.data)[1]
    solver = bl.SGD(0.05, batch_size=8)
    for one in bl.Implicit(solver, 200, damping=30.0), bl.Reverse(solver, 200, truncate=1):
        estimator = bl.Richardson(one)
        if copies > 1:
            estimator = bl.Replicated(estimator, copies)
        with pytest.warns(bl.EvidenceWarning):
            found = run(case, estimator)
        true = np.linalg.norm(found.grad - exact) / np.linalg.norm(exact)
        assert true > 0.8
        assert found.relative_error > 0.9 * true  # noise adds to it where the gradient is near 0


def test_the_interval_is_around_the_extrapolated_gradient() -> None:
    case = logistic(seed=0)
    found = run(case, bl.Replicated(bl.Richardson(bl.Forward(bl.SGD(0.2, 2), 20)), 4))
    low, high = found.interval()
    np.testing.assert_allclose((low + high) / 2, found.grad, rtol=1e-9)


def test_both_chains_go_on_from_call_to_call() -> None:
    case, half = ridge(seed=0), bl.Richardson(bl.Forward(bl.GradientDescent(0.1), 5))
    args, key = (case.hyper, case.params, case.data), jax.random.key(0)
    _, state = bl.hypergradient(case.problem, half, *args, key)
    again, _ = bl.hypergradient(case.problem, half, *args, key, state=state)
    whole = run(case, bl.Richardson(bl.Forward(bl.GradientDescent(0.1), 10)))
    np.testing.assert_allclose(again.grad, whole.grad, rtol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "found"),
    [
        (bl.ClosedForm(), "ClosedForm has none"),
        (bl.Forward(bl.SGD(bl.InverseTime(1.0, 2.0)), 5), "SGD has InverseTime"),
        (bl.Forward(bl.SGD(bl.Decay(0.1, 0.5)), 5), "SGD has Decay"),
        (
            bl.Replicated(bl.Forward(bl.SGD(lambda count, h: jnp.exp(h)), 5), 2),
            "SGD has FunctionSch",
        ),
        (bl.Implicit(bl.Newton(), 5), "Newton has none"),
    ],
    ids=["no solver", "schedule", "decay", "hyperparameter", "no step size"],
)
def test_refuses_a_step_size_that_it_cannot_double(estimator: Any, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        bl.Richardson(estimator)
