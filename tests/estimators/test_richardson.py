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
    # What it calls the bias of the plain estimate is that bias, to O(step size^2) and noise.
    np.testing.assert_allclose(found.evidence.bias, error, rtol=0.4)
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
    np.testing.assert_allclose(found.evidence.bias, coarse.grad - fine.grad, rtol=1e-9)
    np.testing.assert_allclose(
        found.evidence.inner_residual, fine.evidence.inner_residual, rtol=1e-10
    )


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
