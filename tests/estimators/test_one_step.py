"""OneStep: the truncated derivative, and an honest size of what the truncation drops."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case, dense_hypergradient, logistic, ridge
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")


def estimate(case: Case, estimator: Any, seed: int = 0) -> bl.Estimate:
    key = jax.random.key(seed)
    return bl.hypergradient(case.problem, estimator, case.hyper, case.params, case.data, key)[0]


def distance(a: Any, b: Any) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def isotropic(curvature: float = 0.5) -> Case:
    """Every direction contracts at one rate: the dropped terms are exactly geometric."""
    problem = bl.Problem(
        lambda w, h, x: curvature * jnp.sum((w["w"] - jnp.sin(h["h"])) ** 2) / 2 + 0 * x.sum(),
        lambda w, h, x: jnp.sum((w["w"] - x[0]) ** 2) / 2 + jnp.sum(h["h"]),
    )
    data = bl.Data(inner=np.zeros((1, 3)), outer=np.array([[1.0, -2.0, 0.5]]))
    hyper, params = {"h": np.array([0.3, 1.0, -0.4])}, {"w": np.zeros(3)}
    return Case("isotropic", problem, hyper, params, data, step_size=0.2, steps=400)


@quick_cases(1, "last", [1, 11])
def test_is_truncated_reverse_mode(last: int) -> None:
    case = logistic(seed=1)
    solver = bl.SGD(0.1, batch_size=5, momentum=0.5, sampling="epoch")
    ours = estimate(case, bl.OneStep(solver, 12, last=last))
    theirs = estimate(case, bl.Reverse(solver, 12, truncate=last))
    np.testing.assert_allclose(ours.grad, theirs.grad, rtol=1e-12)
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-12)
    if last == 11:  # one step is dropped, and that one is pulled back
        whole = estimate(case, bl.Reverse(solver, 12))
        np.testing.assert_allclose(ours.grad - ours.evidence.bias, whole.grad, rtol=1e-12)


@pytest.mark.parametrize("last", [1, 3])
def test_the_bias_is_exact_when_one_rate_rules(last: int) -> None:
    case = isotropic()
    found = estimate(case, bl.OneStep(bl.GradientDescent(case.step_size), case.steps, last=last))
    _, exact = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    assert distance(found.grad["h"], exact["h"]) > 0.1
    corrected = found.grad["h"] - found.evidence.bias["h"]
    np.testing.assert_allclose(corrected, exact["h"], atol=1e-12)


@pytest.mark.parametrize("momentum", [None, 0.6])
def test_error_and_bias_fall_at_the_rate_of_the_contraction(momentum: float | None) -> None:
    case = ridge(seed=2)
    X, y = case.data.inner
    spectrum = np.linalg.eigvalsh(X.T @ X / len(y) + np.diag(np.exp(case.hyper)))
    beta = momentum or 0.0
    # The step's map on (w, velocity), one 2 x 2 block per eigenvalue of the Hessian.
    blocks = [[[1 - case.step_size * s, -case.step_size * beta], [s, beta]] for s in spectrum]
    rate = np.abs(np.linalg.eigvals(blocks)).max()
    solver = bl.SGD(case.step_size, momentum=momentum)
    _, exact = case.exact(case.hyper)
    errors, biases = [], []
    for last in (10, 30):
        found = estimate(case, bl.OneStep(solver, case.steps, last=last))
        errors.append(distance(found.grad, exact))
        biases.append(float(np.linalg.norm(found.evidence.bias)))
    # 3 allows for the other modes, which weigh more when less is kept.
    assert errors[1] <= 3 * rate**20 * errors[0]
    np.testing.assert_allclose(biases, errors, rtol=0.02)


def test_a_superlinear_solver_needs_one_step_only() -> None:
    case = logistic(seed=3)
    found = estimate(case, bl.OneStep(bl.Newton(bl.CG(tol=1e-13)), 8))
    _, exact = dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    np.testing.assert_allclose(found.grad, exact, rtol=1e-9)
    assert abs(found.evidence.bias) <= 1e-9 * abs(exact)


def test_minibatch_steps_report_the_order_of_what_is_dropped() -> None:
    """Against the full derivative along the same minibatches, averaged over keys."""
    case, solver = ridge(seed=0), bl.SGD(0.1, batch_size=5)
    keys = jax.random.split(jax.random.key(0), 64)

    def mean(estimator: Any, read: Callable[[bl.Estimate], Any]) -> np.ndarray:
        def one(key: Any) -> Any:
            args = (case.hyper, case.params, case.data, key)
            return read(bl.hypergradient(case.problem, estimator, *args)[0])

        return np.asarray(jax.vmap(one)(keys)).mean(0)

    short = bl.OneStep(solver, 300, last=5)
    dropped = mean(short, lambda e: e.grad) - mean(bl.Forward(solver, 300), lambda e: e.grad)
    bias = mean(short, lambda e: e.evidence.bias)
    assert np.linalg.norm(bias - dropped) <= np.linalg.norm(dropped) / 2


def test_steps_that_do_not_contract_have_no_bound() -> None:
    case = isotropic(curvature=0.5)
    found = estimate(case, bl.OneStep(bl.GradientDescent(4.5), 6))  # stable below 4
    assert np.isinf(found.evidence.bias["h"]).all()
    assert np.isfinite(found.grad["h"]).all()


def test_refuses_counts_out_of_range() -> None:
    with pytest.raises(ValueError, match="last=7 is more than steps=6"):
        bl.OneStep(bl.GradientDescent(0.1), 6, last=7)
    with pytest.raises(ValueError, match="last must be at least 1"):
        bl.OneStep(bl.GradientDescent(0.1), 6, last=0)
