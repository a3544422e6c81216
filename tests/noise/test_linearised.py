"""Linearised moments, mean shifts and influence: exact on quadratics, near them otherwise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.noise import Ridge
from bilevel.noise.hypergradients import bias, error, influence
from bilevel.noise.moments import limits, linearised, rules, run
from tests.marks import quick_cases
from tests.noise.linear_models import LOG_RIDGE, runs, z_scores

pytestmark = pytest.mark.usefixtures("x64")


def ridge(seed=0):
    """The same problem as a `bl.Problem` and as a :class:`Ridge`."""
    rng = np.random.default_rng(seed)
    A, V, w = rng.standard_normal((17, 3)), rng.standard_normal((9, 3)), rng.standard_normal(3)
    b, y = A @ w + 0.6 * rng.standard_normal(17), V @ w + 0.6 * rng.standard_normal(9)
    data, penalty = bl.Data(inner=(A, b), outer=(V, y)), np.exp(-1.0)
    process = Ridge.from_data(A, b, penalty, np.full((3, 1), penalty), batch_size=2)
    return (LOG_RIDGE, jnp.asarray(-1.0), jnp.zeros(3), data), process


def outer_parts(parts, x):
    problem, hyper, _, data = parts
    slope = jax.grad(problem.outer)(x, hyper, data.outer)
    return slope, jax.hessian(problem.outer)(x, hyper, data.outer)


@partial(jax.jit, static_argnums=(0, 4))
def linear_theory(problem, hyper, params, data, batch_size, rule):
    """All predictions in one program: op by op they would compile for most of a minute."""
    parts = problem, hyper, params, data
    here = linearised.linearise(*parts, batch_size=batch_size)
    stationary = here.process.stationary(rule)
    second = stationary.second[0, :, 0]
    shift = bias.mean_shift(*parts, here, second)
    return here, stationary, shift, bias.hypergradient_error(*parts, here, second)


@pytest.mark.extended
def test_exact_on_a_quadratic_problem():
    parts, process = ridge()
    here, dense, shift, found = linear_theory(*parts, 2, rules.sgd(0.1))
    np.testing.assert_allclose(here.derivative, process.derivative, rtol=1e-12)
    exact = jax.jit(limits.stationary)(process, rules.sgd(0.1))
    for ours, theirs in zip(here.blocks(dense), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)
    np.testing.assert_allclose(shift, 0, atol=1e-14)
    slope, Q = outer_parts(parts, here.solution)
    expected = error.predict(exact, process.derivative, slope, Q)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_blocks_start_where_they_are_told_to():
    parts, process = ridge()
    here = linear_theory(*parts, 2, rules.sgd(0.1))[0]
    ours = here.blocks(here.start(jnp.ones(3), 0.5, slots=2))
    theirs = process.start(jnp.ones(3), 0.5, slots=2)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    shift = jnp.arange(6.0)
    moved = here.blocks(here.start(here.solution, here.derivative), shift)
    np.testing.assert_allclose(moved.xd[0, 0, :, 0], np.outer(shift[:3], shift[3:]))
    np.testing.assert_allclose(moved.dd[0, 0, :, 0], np.outer(shift[3:], shift[3:]))


def _logistic(w, log_penalty, batch):
    return _log_loss(w, log_penalty, batch) + jnp.exp(log_penalty) * jnp.sum(w**2) / 2


def _log_loss(w, log_penalty, batch):
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


@pytest.mark.extended
@pytest.mark.parametrize("seed", [1])
def test_logistic_regression_within_the_order_of_the_step(seed):
    """Second moments are within the stated O(step) of real SGD's, means within 4 s.e. (6e-5)."""
    rng = np.random.default_rng(seed)
    X, V, w = rng.standard_normal((50, 4)), rng.standard_normal((23, 4)), 2 * rng.standard_normal(4)
    y, v = (np.where(A @ w + rng.standard_normal(len(A)) > 0, 1.0, -1.0) for A in (X, V))
    problem, data = bl.Problem(_logistic, _log_loss), bl.Data(inner=(X, y), outer=(V, v))
    parts = problem, jnp.asarray(-2.0), jnp.zeros(4), data
    eta = 0.3
    here, stationary, shift, predicted = linear_theory(*parts, 1, rules.sgd(eta))
    second = stationary.second[0, :, 0]
    curvature = np.linalg.eigvalsh(here.process.matrices.mean(0)[:4, :4])[0]

    estimator = bl.Forward(bl.SGD(eta, batch_size=1), steps=int(14 / (eta * curvature)))
    keys = jax.random.split(jax.random.key(seed), 4000)
    x, D = runs(problem, estimator, parts[1], here.solution, data, keys, segments=1)
    z = np.concatenate([x[:, 0] - here.solution, D[:, 0, 0] - here.derivative[0]], 1)
    assert np.abs(z_scores(z, shift)).max() < 4
    assert np.abs(z_scores(z, 0 * shift)).max() > 8
    for part in (slice(0, 4), slice(4, 8)):
        ratio = np.trace(second[part, part]) / np.mean((z[:, part] ** 2).sum(1))
        assert ratio == pytest.approx(1, abs=eta / 2)
    slopes = jax.vmap(lambda w: jax.grad(_log_loss)(w, 0.0, data.outer))(x[:, 0])
    grads = np.sum(np.asarray(slopes) * np.asarray(D[:, 0, 0]), 1)
    assert abs(z_scores(grads, predicted.exact[0] + predicted.bias[0])) < 4  # false alarm: 6e-5
    assert abs(z_scores(grads, predicted.exact[0])) > 6
    # To first order only: at a fifth of the largest stable step a fifth or so is missing.
    assert grads.std() == pytest.approx(float(predicted.standard_deviation[0]), rel=0.3)


@quick_cases(1, "name", ["ridge", "logistic"])
def test_influence_is_the_dense_solve(name):
    """``psi_i = -c.C^{-1} F_i`` with dense third derivatives; trees, several hyperparameters."""
    case = getattr(bl.testing, name)(seed=0)
    parts = jax.tree.map(jnp.asarray, (case.hyper, case.params, case.data))
    here = jax.jit(partial(linearised.linearise, case.problem, batch_size=1))(*parts)
    unravel = ravel_pytree(case.params)[1]
    of = partial(influence.compute_influence, case.problem, linear=bl.CG(tol=1e-12), chunk=5)
    found = jax.jit(of)(parts[0], unravel(here.solution), parts[2])
    assert float(found.residual) < 1e-10
    (p, n), C = here.derivative.shape, here.process.matrices.mean(0)

    def hypergradient(z):
        params = unravel(z[:n])
        slope = ravel_pytree(jax.grad(case.problem.outer)(params, case.hyper, case.data.outer))[0]
        return z[n:].reshape(p, n) @ slope

    z = jnp.concatenate([here.solution, here.derivative.ravel()])
    slopes = jax.jacobian(hypergradient)(z)
    expected = slopes @ jnp.linalg.solve(C, here.process.offsets.T)
    np.testing.assert_allclose(found.values, expected, rtol=1e-7, atol=1e-10)
    deviation = found.standard_deviation(window=50, batch_size=2)
    np.testing.assert_allclose(deviation, found.values.std(axis=1) / 10, rtol=1e-12)


@pytest.mark.extended
def test_influence_is_the_limit_of_the_exact_tail_average():
    """At a small step and a long window the exact deviation of the average is the influence's."""
    parts, process = ridge()
    problem, hyper, _, data = parts
    slope, Q = outer_parts(parts, process.solution)
    steps, window, eta = 60_000, 50_000, 0.02
    schedule = rules.averaged(rules.sgd(jnp.full(steps, eta)), rules.tail_weights(steps, window))
    start = process.start(process.solution, process.derivative, slots=2)
    end = jax.jit(lambda p, s, r: run(p, s, r, lambda now: 0)[0])(process, start, schedule)
    exact = error.predict(end, process.derivative, slope, Q, slot=-1)
    found = jax.jit(partial(influence.compute_influence, problem))(hyper, process.solution, data)
    np.testing.assert_allclose(
        found.standard_deviation(window, 2), exact.standard_deviation, rtol=0.02
    )


def test_without_the_derivative_it_is_the_part_of_the_params():
    problem, *parts = ridge()[0]

    def make(derivative):
        of = partial(linearised.linearise, problem, batch_size=1, derivative=derivative)
        return jax.jit(of)(*parts)

    whole, alone = make(True), make(False)
    n = len(whole.solution)
    assert alone.derivative.shape == (0, n)
    np.testing.assert_allclose(alone.solution, whole.solution, rtol=1e-12)
    np.testing.assert_allclose(
        alone.process.matrices, whole.process.matrices[:, :n, :n], rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(alone.process.offsets, whole.process.offsets[:, :n], rtol=1e-10)


def test_refusals():
    problem, hyper, params, data = ridge()[0]
    concave = bl.Problem(lambda w, h, batch: -problem.inner(w, h, batch), problem.outer)
    with pytest.raises(ValueError, match="indefinite"):
        linearised.linearise(concave, hyper, params, data, batch_size=1)
    far = bl.Problem(
        lambda w, h, batch: jnp.mean(jnp.sqrt(1 + (w - batch[1][:, None]) ** 2)), problem.outer
    )
    with pytest.raises(ValueError, match="Newton steps from params end"):
        linearised.linearise(far, hyper, params + 1e3, data, batch_size=1)
    with pytest.raises(ValueError, match="depend on one another"):
        linearised.linearise(problem, hyper, params, data, batch_size=1, sampling="epoch")
    started = bl.Problem(problem.inner, problem.outer, start=lambda h, w: w * h)
    with pytest.raises(ValueError, match="start"):
        influence.compute_influence(started, hyper, params, data)
    process = ridge()[1]
    stationary = process.start(process.solution, process.derivative)
    with pytest.raises(ValueError, match="hessian has shape"):
        error.predict(stationary, process.derivative, jnp.ones(3), jnp.ones((2, 2)))
