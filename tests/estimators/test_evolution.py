"""Evolution strategies: unbiased, honest about their noise, and content with any solver."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case, logistic, mlp, ridge
from bilevel.utils import register_node

pytestmark = pytest.mark.usefixtures("x64")


def evidence_over_keys(case: Case, estimator: Any, seeds: int) -> bl.Estimate:
    """Estimates under ``seeds`` keys, one leading axis."""
    keys = jax.random.split(jax.random.key(0), seeds)

    def one(key: Any) -> bl.Estimate:
        args = (case.hyper, case.params, case.data, key)
        return bl.hypergradient(case.problem, estimator, *args)[0]

    return jax.vmap(one)(keys)


def stacked(tree: Any) -> np.ndarray:
    """Leaves ``[n, *leaf]`` side by side, ``[n, p]``."""
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], 1)


def within_standard_errors(samples: np.ndarray, truth: np.ndarray, times: float = 4.0) -> bool:
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return bool((np.abs(samples.mean(0) - truth) <= times * error).all())


@pytest.mark.extended
def test_is_unbiased() -> None:
    """For deterministic steps forward mode has the exact derivative; sigma^2 = 1e-8 is no bias."""
    case, solver = mlp(seed=0), bl.GradientDescent(0.1)
    found = evidence_over_keys(case, bl.Evolution(solver, 20, sigma=1e-4, pairs=8), 200)
    truth = evidence_over_keys(case, bl.Forward(solver, 20), 1)
    assert within_standard_errors(stacked(found.grad), stacked(truth.grad)[0])


@pytest.mark.extended
def test_the_standard_error_is_the_spread_over_keys() -> None:
    """Directions and minibatches both: the ratio is chi-squared on 399 and 400 x 7 degrees."""
    case, seeds = ridge(seed=0), 400
    estimator = bl.Evolution(bl.SGD(0.1, batch_size=4), 20, sigma=0.05, pairs=8)
    found = evidence_over_keys(case, estimator, seeds)
    spread = stacked(found.grad).std(0, ddof=1)
    claimed = np.sqrt((stacked(found.evidence.standard_error) ** 2).mean(0))
    # sd of a relative sd is 1 / sqrt(2 df) for normal data; 1.6 allows for heavier tails.
    np.testing.assert_allclose(claimed / spread, 1, atol=4 * 1.6 / np.sqrt(2 * seeds))


@pytest.mark.extended
def test_the_runs_of_a_pair_share_their_minibatches() -> None:
    """With one hyperparameter a pair is a central difference at fixed minibatches."""
    case, solver = logistic(seed=0), bl.SGD(0.2, batch_size=4)
    found = evidence_over_keys(case, bl.Evolution(solver, 50, sigma=1e-4, pairs=2), 1)

    def value(key: Any) -> Any:
        args = (case.hyper, case.params, case.data, key)
        params = bl.solve(case.problem, solver, *args, steps=50)
        return case.problem.outer(params, case.hyper, case.data.outer)

    values = jax.vmap(value)(jax.random.split(jax.random.key(1), 50))
    independent = values.std() / (1e-4 * np.sqrt(2 * 2))
    assert found.evidence.standard_error[0] < 1e-3 * independent


@pytest.mark.extended
def test_agrees_with_forward_mode_under_the_same_noise() -> None:
    """Minibatch noise included: means over keys of independent runs, 4 standard errors."""
    case, solver = logistic(seed=0), bl.SGD(0.2, batch_size=4)
    ours = evidence_over_keys(case, bl.Evolution(solver, 30, sigma=1e-3, pairs=2), 300)
    theirs = evidence_over_keys(case, bl.Forward(solver, 30), 300)
    assert within_standard_errors(stacked(ours.grad) - stacked(theirs.grad), np.zeros(1))


@dataclass(frozen=True)
class Comparing:
    """A search by comparisons, whose derivative JAX would take for 0."""

    step_size: float = 0.1

    def init(self, params: Any, data: Any) -> Any:
        return ()

    def step(self, loss: Any, params: Any, hyper: Any, data: Any, key: Any, state: Any) -> Any:
        moves = params + self.step_size * jnp.array([0.0, 1.0, -1.0])
        best = jnp.argmin(jax.vmap(lambda w: loss(w, hyper, data))(moves))
        return moves[best], state

    def why_not_unrolled(self, state: Any) -> str:
        return "it only compares losses"


register_node(Comparing)


def test_needs_no_derivative_of_the_solver() -> None:
    """The minimiser w* = h is reached on a grid of 0.1: the smoothed slope is that of w*."""
    problem = bl.Problem(
        lambda w, h, x: (w - h) ** 2 + 0 * x[0], lambda w, h, x: w**2 / 2 + 0 * x[0]
    )
    data = bl.Data(inner=np.zeros(1), outer=np.zeros(1))
    args = (problem, bl.Forward(Comparing(), 40), 1.0, 0.0, data, jax.random.key(0))
    with pytest.raises(ValueError, match="it only compares losses"):
        bl.hypergradient(*args)
    estimator = bl.Evolution(Comparing(), 40, sigma=0.5, pairs=2)
    estimate, _ = bl.hypergradient(args[0], estimator, *args[2:])
    np.testing.assert_allclose(estimate.grad, 1.0, rtol=1e-9)  # (1.5^2 - 0.5^2) / 2


def test_sees_the_step_size_of_the_solver() -> None:
    case = ridge(seed=0)
    solver = bl.SGD(lambda count, h: jnp.exp(h))
    problem = bl.Problem(
        lambda w, h, batch: case.problem.inner(w, case.hyper, batch), case.problem.outer
    )
    tuned = Case("", problem, np.array(-3.0), case.params, case.data, 0.1, 10)
    ours = evidence_over_keys(tuned, bl.Evolution(solver, 10, sigma=1e-4, pairs=2), 1)
    theirs = evidence_over_keys(tuned, bl.Forward(solver, 10), 1)
    np.testing.assert_allclose(ours.grad, theirs.grad, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"pairs": 1}, "at least 2 for a standard error"), ({"sigma": 0.0}, "sigma must be a pos")],
)
@pytest.mark.parametrize("make", [bl.Evolution, bl.PES])
def test_refuses_settings_out_of_range(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(bl.GradientDescent(0.1), 5, **settings)


def test_the_gradient_has_the_dtype_of_hyper() -> None:
    case = logistic(seed=0)
    estimator, hyper = bl.Evolution(bl.GradientDescent(0.1), 3, pairs=2), np.float32(-1.5)
    args = (hyper, case.params, case.data, jax.random.key(0))  # params are in float64
    estimate, _ = bl.hypergradient(case.problem, estimator, *args)
    assert estimate.grad.dtype == estimate.evidence.standard_error.dtype == np.float32
