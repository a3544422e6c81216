"""What is known of estimators whose derivative satisfies no equation: UORO, PES, ES, penalties."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from benchmarks.coverage_cases import linear_model
from bilevel.testing import dense_hypergradient

pytestmark = pytest.mark.usefixtures("x64")
SGD, GD = bl.SGD(0.05, batch_size=8), bl.GradientDescent(0.1)


def run(estimator: Any, n: int = 60, d: int = 4, **settings: Any) -> tuple[Any, float, Any]:
    """The estimate, its true relative error and the problem."""
    made = problem, data, hyper, params = linear_model("ridge", n, d, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bl.EvidenceWarning)
        estimate, _ = bl.hypergradient(
            problem, estimator, hyper, params, data, jax.random.key(1), max_error=np.inf
        )
    exact = dense_hypergradient(problem, hyper, params, data)[1]
    return estimate, float(jnp.linalg.norm(estimate.grad - exact) / jnp.linalg.norm(exact)), made


@pytest.mark.parametrize("steps", [20, 200])
def test_the_noise_of_a_rank_one_derivative_is_seen_on_a_small_problem(steps: int) -> None:
    estimate, true, _ = run(bl.UORO(SGD, steps))
    assert true > 0.05  # an inner residual of .03 says nothing of it
    assert estimate.relative_error == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize(("steps", "copies", "good"), [(10, 64, False), (400, 256, True)])
def test_copies_do_not_average_away_what_they_have_in_common(steps, copies, good) -> None:
    """Their noise is larger than the gradient that too few steps have made so far."""
    one = bl.UORO(GD, steps)
    found, true, _ = run(bl.Replicated(one, copies), d=3, smallest=0.3, per_feature=not good)
    assert (true < 0.3) == good
    assert found.relative_error == pytest.approx(true, rel=0.5)
    assert (found.relative_error > 0.5) != good


def test_an_inner_residual_alone_is_no_knowledge_of_a_derivative() -> None:
    """100 params, 2 000 rows: too much to be solved beside 20 steps."""
    estimate, true, _ = run(bl.UORO(SGD, 20), n=2000, d=100, per_feature=False)
    assert true > 0.05
    assert np.isnan(estimate.relative_error)
    assert estimate.unknown == ("systematic error", "noise of the inner solver")


@pytest.mark.parametrize("make", [bl.PES, bl.Evolution])
def test_evolution_strategies_know_their_noise_alone(make: Any) -> None:
    estimate, _, _ = run(make(SGD, 40, pairs=8))
    size = np.linalg.norm(estimate.evidence.standard_error)
    noise = size / np.sqrt(np.linalg.norm(estimate.grad) ** 2 - size**2)
    assert estimate.relative_error == pytest.approx(noise, rel=1e-9)
    assert estimate.unknown == ("systematic error",)


def test_a_penalty_reports_what_its_chains_leave_of_the_adjoint_system() -> None:
    """Against the dense Hessian: ``|b - gamma H (w* - w_g)| / |b|`` of the chains themselves."""
    gamma = 1e3
    short, true, (_, data, hyper, _) = run(bl.Penalty(GD, 5, gamma=gamma))
    (X, y), (Z, t) = jax.tree.map(np.asarray, (data.inner, data.outer))
    hessian, ends = X.T @ X / len(X) + np.diag(np.exp(hyper)), []
    for weight in (0.0, 1.0):  # the chains by hand
        w = np.zeros(4)
        for _ in range(5):
            inner, outer = hessian @ w - X.T @ y / len(X), Z.T @ (Z @ w - t) / len(Z)
            w = w - 0.1 * (inner + weight / gamma * outer)
        ends.append(w)
    b = Z.T @ (Z @ ends[1] - t) / len(Z)
    left = np.linalg.norm(b - gamma * hessian @ (ends[0] - ends[1])) / np.linalg.norm(b)
    assert true > 0.5
    assert short.evidence.linear_residual == pytest.approx(left, rel=1e-6)
    assert short.relative_error >= left


def test_a_penalty_that_is_solved_raises_no_alarm() -> None:
    estimate, true, _ = run(bl.Penalty(GD, 600, gamma=1e3))
    assert true < 0.05
    assert estimate.evidence.linear_residual < 1e-3
    assert estimate.relative_error < 0.1


def test_a_loss_without_slopes_is_compared_with_no_derivative() -> None:
    """An outer loss of steps: its derivative is 0 everywhere, that of an evolution is not."""
    problem, data, hyper, params = linear_model("logistic", 60, 2)

    def errors(w: jax.Array, h: jax.Array, batch: Any) -> jax.Array:
        X, y = batch
        return jnp.mean(jnp.sign(X @ w) != y)

    counted = bl.Problem(problem.inner, errors)
    estimator = bl.Evolution(bl.GradientDescent(0.5), 20, sigma=0.5, pairs=8)
    estimate, _ = bl.hypergradient(
        counted, estimator, hyper, params, data, jax.random.key(0), max_error=np.inf
    )
    assert not np.isinf(estimate.relative_error)
