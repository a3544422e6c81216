"""Replicated: the mean over keys, its standard error, and how many copies are enough."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import Case, logistic, ridge
from bilevel.utils import register_node
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")

NOISY = bl.Forward(bl.SGD(0.2, batch_size=4), steps=15)


def run(
    case: Case, estimator: Any, key: Any, state: Any = None
) -> tuple[bl.Estimate, bl.InnerState]:
    problem, hyper, params, data = case.problem, case.hyper, case.params, case.data
    return bl.hypergradient(problem, estimator, hyper, params, data, key, state=state)


def test_is_the_mean_over_independent_keys() -> None:
    case, key, n = ridge(seed=0), jax.random.key(5), 6
    found, state = run(case, bl.Replicated(NOISY, n), key)
    ones = [run(case, NOISY, k) for k in jax.random.split(key, n)]
    grads = np.stack([estimate.grad for estimate, _ in ones])
    np.testing.assert_allclose(found.grad, grads.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        found.evidence.standard_error, grads.std(0, ddof=1) / np.sqrt(n), rtol=1e-10
    )
    np.testing.assert_allclose(found.value, np.mean([e.value for e, _ in ones]), rtol=1e-12)
    assert found.evidence.counts.gradients == n * ones[0][0].evidence.counts.gradients
    np.testing.assert_allclose(state.params, ones[0][1].params, rtol=1e-12)
    np.testing.assert_allclose(
        found.evidence.inner_residual, ones[0][0].evidence.inner_residual, rtol=1e-12
    )
    np.testing.assert_allclose(state.memory.params, [low.params for _, low in ones], rtol=1e-12)


def test_copies_stay_independent_under_a_warm_start() -> None:
    """The claimed standard error after three calls against the spread over 400 whole runs."""
    case, estimator, seeds = logistic(seed=0), bl.Replicated(NOISY, 4), 400

    def last(key: Any) -> bl.Estimate:
        estimate, state = None, None
        for k in jax.random.split(key, 3):
            estimate, state = run(case, estimator, k, state)
        return estimate

    found = jax.vmap(last)(jax.random.split(jax.random.key(0), seeds))
    claimed = np.sqrt(np.mean(found.evidence.standard_error**2))
    # Relative sd of the two: 1 / sqrt(2 df), df = 399 and 400 x 3; 1.6 for heavier tails.
    tolerance = 4 * 1.6 * np.sqrt(1 / 800 + 1 / 2400)
    np.testing.assert_allclose(claimed / np.std(found.grad, ddof=1), 1, atol=tolerance)


@pytest.mark.extended
def test_needed_reaches_the_tolerance_that_was_asked_for() -> None:
    case, pilot, tolerance = ridge(seed=0), 64, 0.05
    estimator = bl.Replicated(NOISY, pilot)
    estimate, _ = run(case, estimator, jax.random.key(0))
    n = round(float(estimator.needed(estimate, tolerance)))
    enough = bl.Replicated(NOISY, n)
    reached, _ = run(case, enough, jax.random.key(1))
    relative = np.linalg.norm(reached.evidence.standard_error) / np.linalg.norm(reached.grad)
    # The pilot's noise: 4 standard errors of a standard deviation of 64 draws, heavier tails.
    np.testing.assert_allclose(relative / tolerance, 1, atol=4 * 1.6 / np.sqrt(2 * pilot))
    np.testing.assert_allclose(enough.needed(reached, relative) / n, 1, atol=0.02)


def test_noise_that_hides_the_gradient_needs_more_than_any_number() -> None:
    estimator = bl.Replicated(NOISY, 4)

    def needed(grad: float, error: float) -> float:
        evidence = bl.Evidence(standard_error={"h": jnp.array([error])})
        return float(
            estimator.needed(bl.Estimate(jnp.array(0.0), {"h": jnp.array([grad])}, evidence))
        )

    assert needed(grad=1.0, error=1.5) == np.inf
    assert needed(grad=1.0, error=0.0) == 0
    assert needed(grad=0.0, error=0.0) == 0


@dataclass(frozen=True)
class Told:
    """Reports what it is told to, in every field, scaled by a random number."""

    def init(self, params: Any, data: Any) -> bl.InnerState:
        return bl.InnerState(params, ())

    def step(
        self, problem: Any, hyper: Any, lower: bl.InnerState, data: Any, key: Any
    ) -> tuple[bl.Estimate, bl.InnerState]:
        x = jax.random.uniform(key)
        evidence = bl.Evidence(x, 2 * x, 3 * x * hyper, 4 * x * hyper, bl.Counts.of(vjps=7))
        return bl.Estimate(x, x * hyper, evidence), lower


register_node(Told)


def test_passes_the_evidence_on() -> None:
    case, key = ridge(seed=0), jax.random.key(0)
    found = run(case, bl.Replicated(Told(), 3), key)[0].evidence
    x = np.array([jax.random.uniform(k) for k in jax.random.split(key, 3)])
    np.testing.assert_allclose(found.inner_residual, x[0])
    np.testing.assert_allclose(found.linear_residual, 2 * x.max())
    np.testing.assert_allclose(found.bias, 4 * x.mean() * case.hyper)
    spread = x.std(ddof=1) / np.sqrt(3) * np.abs(case.hyper)
    np.testing.assert_allclose(found.standard_error, spread, rtol=1e-10)
    assert found.counts.vjps == 21


@quick_cases(
    1,
    ("wrap", "limit"),
    [(lambda one: bl.Replicated(one, 2), 5), (bl.Richardson, 2.5)],
    ids=["Replicated", "Richardson"],
)
def test_a_divergence_is_explained_by_the_solver_inside(wrap: Any, limit: float) -> None:
    """The step size 0.4 contracts curvatures below 2 / 0.4, and twice that step half of them."""
    case = ridge(seed=0)
    estimator = wrap(bl.Forward(bl.GradientDescent(0.4), 40))
    start, params = jnp.asarray(case.hyper), jnp.asarray(case.params)
    with pytest.warns(bl.DivergenceWarning, match=f"above the {limit} that"):
        bl.tune(
            case.problem,
            estimator,
            optax.sgd(-30.0),
            start,
            params,
            case.data,
            steps=40,
            key=jax.random.key(0),
        )


def test_refuses_one_copy() -> None:
    with pytest.raises(ValueError, match="there is no standard error"):
        bl.Replicated(NOISY, 1)
