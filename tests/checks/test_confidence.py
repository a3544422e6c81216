"""Uncertainty over the data, against finite differences, refits, and redrawn data sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from benchmarks.confidence import cover
from bilevel.checks.confidence import measure_sensitivities
from bilevel.spaces import Log


def ridge(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.sum(h * w**2) / 2


def loss(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


PROBLEM = bl.Problem(ridge, loss, quadratic=True, space=Log())


def make_data(n=30, m=25, d=3):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n + m, d))
    y = x @ np.array([1.0, 0.5, 0.2]) + rng.normal(size=n + m)
    return bl.Data(inner=(x[:m], y[:m]), outer=(x[m:], y[m:]))


def refit(free, data, weights):
    """Return the validation rows' losses; training row i counts ``weights[i] / m``."""
    (x, y), (xv, yv) = data.inner, data.outer
    weighted = x * weights[:, None] / len(x)
    w = np.linalg.solve(weighted.T @ x + np.diag(np.exp(free)), weighted.T @ y)
    return (xv @ w - yv) ** 2 / 2


def differences(fn, at, step=1e-4):
    moves = step * np.eye(len(at))
    return np.stack([(fn(at + e) - fn(at - e)) / (2 * step) for e in moves], -1)


def test_sensitivities_are_those_of_refits():
    data, free = make_data(), np.array([-1.0, -0.5, 0.3])
    ones = np.ones(25)
    with jax.enable_x64(True):
        found = measure_sensitivities(PROBLEM, jnp.exp(free), jnp.zeros(3), data)
        found = jax.tree.map(np.asarray, found)

    def value(free, weights):
        return refit(free, data, weights).mean()

    def influence(free):
        return 25 * differences(lambda weights: value(free, weights), ones)

    slopes = differences(lambda f: refit(f, data, ones), free)
    hessian = differences(lambda f: differences(lambda g: value(g, ones), f), free)
    np.testing.assert_allclose(found.losses, refit(free, data, ones), rtol=1e-10)
    np.testing.assert_allclose(found.slopes, slopes, atol=1e-7)
    np.testing.assert_allclose(found.curvature, hessian, atol=1e-6)
    # A weight moves the loss of its row alone; the penalty, in every row's loss, moves with none.
    own = np.asarray(found.influence) - np.mean(found.influence)
    np.testing.assert_allclose(own, influence(free) - influence(free).mean(), atol=1e-6)
    pulls = np.asarray(found.pulls) - np.mean(found.pulls, 0)
    exact = differences(influence, free, 1e-3)
    np.testing.assert_allclose(pulls, exact - exact.mean(0), atol=1e-4)


def tuned(data):
    arguments = (PROBLEM, bl.ClosedForm(), bl.outer.LBFGS(), np.full(3, 0.5), np.zeros(3), data)
    return bl.tune(*arguments, steps=40, key=jax.random.key(0))


def test_regions_intervals_and_the_simplest_point_within_one_standard_error():
    data = make_data()
    result = tuned(data)
    sure = bl.confidence(result, PROBLEM, data)
    losses = refit(np.log(np.asarray(result.hyper)), data, np.ones(25))
    np.testing.assert_allclose(sure.value, losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(sure.value_error, losses.std(ddof=1) / np.sqrt(30), rtol=1e-3)
    low, high = sure.interval()
    decided = np.isfinite(np.asarray(sure.error))
    assert (np.asarray(low) < np.asarray(result.hyper))[decided].all()
    assert (np.asarray(high) > np.asarray(result.hyper))[decided].all()
    assert sure.contains(result.hyper)
    assert "standard error" in sure.message
    assert float(bl.confidence(result, PROBLEM, data, training=True).value_error) > float(
        sure.value_error
    )
    simple = np.asarray(sure.simplest(jnp.ones(3)))
    assert (simple > np.asarray(result.hyper)).all()


def test_what_it_cannot_look_at_is_refused():
    data = make_data()
    never = jnp.array(False)
    result = bl.Result(jnp.ones(3), jnp.zeros(3), {}, None, None, never)
    keyed = bl.Problem(lambda w, h, b, k: 0.0, lambda w, h, b, k: 0.0, stochastic=True)
    with pytest.raises(ValueError, match="confidence needs losses of params, hyper and batch"):
        bl.confidence(result, keyed, data)
    one = bl.Data(inner=data.inner, outer=jax.tree.map(lambda a: a[:1], data.outer))
    with pytest.raises(ValueError, match="two validation rows at least, got 1"):
        bl.confidence(result, PROBLEM, one)


@pytest.mark.extended
def test_regions_cover_the_best_penalty_of_redrawn_ridge_data():
    found = cover(draws=1000)
    assert 0.93 < found["best penalty of the training rows"] < 0.97
    assert 0.93 < found["best penalty of the population, training=True"] < 0.97
