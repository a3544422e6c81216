"""A hypergradient per training example, against dense solves and loops in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

N, T, PENALTY = 11, 3, 0.3
rng = np.random.default_rng(0)
X, V = rng.normal(size=(N, 4)), rng.normal(size=(T, 4))
Y, Z = X @ rng.normal(size=4) + rng.normal(size=N), rng.normal(size=T)


def square(w: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def inner(w: Any, h: Any, batch: Any) -> Any:
    return square(w, batch) + h * jnp.sum(w**2) / 2


PROBLEM = bl.Problem(inner, lambda w, h, batch: square(w, batch), quadratic=True)


def attributed(estimator: Any, **settings: Any) -> bl.Estimate:
    data, start = bl.Data(inner=(X, Y), outer=(V, Z)), jnp.zeros(4)
    key, hyper = jax.random.key(0), jnp.asarray(PENALTY)
    return bl.attribute(PROBLEM, estimator, hyper, start, data, key, **settings)


def influence() -> np.ndarray:
    """Return Cook and Weisberg's by a dense solve: -gradient, inverse Hessian, gradient."""
    H = X.T @ X / N + PENALTY * np.eye(4)
    w = np.linalg.solve(H, X.T @ Y / N)
    slopes = (X @ w - Y)[:, None] * X + PENALTY * w
    return -((V @ w - Z)[:, None] * V) @ np.linalg.solve(H, slopes.T) / N


@pytest.mark.parametrize(
    "estimator",
    [
        bl.ClosedForm(),
        pytest.param(
            bl.Implicit(bl.GradientDescent(0.3), steps=400, linear=bl.CG(tol=1e-12)),
            marks=pytest.mark.extended,
        ),
        pytest.param(bl.Reverse(bl.GradientDescent(0.3), steps=400), marks=pytest.mark.extended),
    ],
    ids=lambda e: type(e).__name__,
)
def test_at_the_minimiser_it_is_the_influence_function(x64, estimator: Any) -> None:
    found = attributed(estimator, each=True)
    np.testing.assert_allclose(found.grad, influence(), rtol=1e-9)
    w = np.linalg.solve(X.T @ X / N + PENALTY * np.eye(4), X.T @ Y / N)
    np.testing.assert_allclose(found.value, (V @ w - Z) ** 2 / 2, rtol=1e-9)
    whole = attributed(estimator)
    np.testing.assert_allclose(whole.grad, influence().mean(0), rtol=1e-8)


def test_of_few_steps_it_is_the_derivative_of_the_run(x64) -> None:
    """Central differences of gradient descent in NumPy on rows with weights of mean 1."""

    def run(weights: np.ndarray) -> np.ndarray:
        w, weights = np.zeros(4), weights / weights.mean()
        for _ in range(5):
            w = w - 0.2 * (X.T @ (weights * (X @ w - Y)) / N + PENALTY * w)
        return (V @ w - Z) ** 2 / 2

    # A row's penalty is weighted as the row is, and weights have mean 1: the penalty stays.
    step = 1e-5 * np.eye(N)
    slopes = [(run(1 + d) - run(1 - d)) / 2e-5 for d in step]
    settings = {"each": True, "max_error": np.inf}
    found = attributed(bl.Reverse(bl.GradientDescent(0.2), steps=5), **settings)
    np.testing.assert_allclose(found.grad, np.transpose(slopes), atol=1e-9)


@pytest.mark.extended
def test_error_bars_are_those_of_each_row(x64) -> None:
    estimator = bl.Replicated(bl.Reverse(bl.SGD(0.1, batch_size=3), steps=20), 5)
    found = attributed(estimator, each=True, max_error=np.inf)
    assert found.grad.shape == found.evidence.standard_error.shape == (T, N)
    low, high = jax.vmap(lambda row: row.interval())(found)
    assert np.all(low < found.grad)
    assert np.all(found.grad < high)
    data, start = bl.Data(inner=(X, Y), outer=(V[1:2], Z[1:2])), jnp.zeros(4)
    at = jnp.asarray(PENALTY), start, data, jax.random.key(0)
    alone = bl.attribute(PROBLEM, estimator, *at, max_error=np.inf)
    np.testing.assert_allclose(found.grad[1], alone.grad, rtol=1e-9)
    error = alone.evidence.standard_error
    np.testing.assert_allclose(found.evidence.standard_error[1], error, rtol=1e-9)


@pytest.mark.parametrize("unit", [1e6, 1e-6])
def test_evidence_is_that_of_the_weights_in_any_unit_of_the_penalty(x64, unit: float) -> None:
    """The hypergradient itself, whose error is another, is 1e6 times as large, or as small."""
    scaled = bl.Problem(lambda w, h, b: inner(w, unit * h, b), PROBLEM.outer, quadratic=True)
    data, hyper = bl.Data(inner=(X, Y), outer=(V, Z)), jnp.asarray(PENALTY / unit)
    estimator = bl.Implicit(bl.GradientDescent(0.2), steps=6, linear=bl.CG(tol=1e-12))
    at = hyper, jnp.zeros(4), data, jax.random.key(0)
    found, exact = bl.attribute(scaled, estimator, *at, max_error=np.inf), influence().mean(0)
    error = np.linalg.norm(found.grad - exact) / np.linalg.norm(exact)
    assert float(found.relative_error) == pytest.approx(error, rel=1e-6)


def test_a_loss_in_two_parts_keeps_them(x64) -> None:
    """Of a linear model Gauss-Newton is the Hessian, and Kronecker factors are its inverse."""
    split = bl.OutputLoss(
        outputs=lambda w, h, batch: batch[0] @ w,
        loss=lambda z, w, h, batch: jnp.mean((z - batch[1]) ** 2) / 2 + h * jnp.sum(w**2) / 2,
    )
    problem = bl.Problem(split, PROBLEM.outer, quadratic=True)
    data, hyper = bl.Data(inner=(X, Y), outer=(V, Z)), jnp.asarray(PENALTY)
    linear = bl.GaussNewton(bl.CG(tol=1e-12, preconditioner=bl.EKFAC(rows=N)))
    estimator = bl.Implicit(bl.GradientDescent(0.3), steps=400, linear=linear)
    found = bl.attribute(problem, estimator, hyper, jnp.zeros(4), data, jax.random.key(0))
    np.testing.assert_allclose(found.grad, influence().mean(0), rtol=1e-9)


def test_rows_that_are_known_to_be_wrong_are_warned_of(x64) -> None:
    with pytest.warns(bl.EvidenceWarning, match=r"Of all outer rows, row \d has the largest error"):
        attributed(bl.Reverse(bl.GradientDescent(0.01), steps=2), each=True)


def test_losses_without_a_row_of_their_own_are_refused() -> None:
    data = bl.Data(inner=(X, Y), outer=(V, Z))
    at = jnp.asarray(PENALTY), jnp.zeros(4), data, jax.random.key(0)
    total = bl.Problem(lambda w, h, b: jnp.sum((b[0] @ w - b[1]) ** 2), PROBLEM.outer)
    with pytest.raises(ValueError, match="the inner loss of all rows at params is"):
        bl.attribute(total, bl.Implicit(bl.GradientDescent(0.1), steps=2), *at)
    shared = bl.Data(inner=(X, Y), outer=(V, 1.0))
    apart = jnp.asarray(PENALTY), jnp.zeros(4), shared, jax.random.key(0)
    with pytest.raises(ValueError, match="same number of rows along a first axis"):
        bl.attribute(PROBLEM, bl.ClosedForm(), *apart, each=True)
    keyed = bl.Problem(lambda w, h, b, key: square(w, b), PROBLEM.outer, stochastic=True)
    with pytest.raises(ValueError, match="weighs the inner loss of single rows"):
        bl.attribute(keyed, bl.Implicit(bl.GradientDescent(0.1), steps=2), *at)
