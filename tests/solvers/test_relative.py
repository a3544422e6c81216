"""Relative step sizes: the limit against dense eigenvalues, and what no penalty outgrows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import noise
from bilevel.solvers import start_solver
from tests.compiling import compilations

KEY = jax.random.key(0)


def ridge(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.exp(h) * jnp.sum(w**2) / 2


def validation(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


PROBLEM = bl.Problem(ridge, validation)


def make_data(n=60, d=5, unit=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * unit * np.geomspace(1, 0.2, d)
    y = x @ rng.normal(size=d) / unit + rng.normal(size=n)
    half = n // 2
    return bl.Data(
        inner=(jnp.asarray(x[:half]), jnp.asarray(y[:half])),
        outer=(jnp.asarray(x[half:]), jnp.asarray(y[half:])),
    )


def solution(data, h):
    x, y = (np.asarray(a, float) for a in data.inner)
    return np.linalg.solve(x.T @ x / len(x) + np.exp(h) * np.eye(x.shape[1]), x.T @ y / len(x))


def step_size_of(solver, h, data, w=None):
    """Return the step size with which a call begins."""
    w = jnp.zeros(data.inner[0].shape[1], data.inner[0].dtype) if w is None else w
    state = start_solver(
        PROBLEM, solver, h, bl.extend.init_inner_state(w, solver.init(w, data.inner)), data
    )[1]
    momentum = solver.momentum if isinstance(solver, bl.SGD) and solver.momentum else 0.0
    return 2 * (1 + momentum) / solver.max_curvature(h, state)


@pytest.mark.parametrize("h", [-20.0, 0.0, 10.0])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_full_batch_limit_is_two_over_the_largest_eigenvalue(h, unit):
    data = make_data(unit=unit)
    x = np.asarray(data.inner[0], float)
    largest = np.linalg.eigvalsh(x.T @ x / len(x))[-1] + np.exp(h)
    found = step_size_of(bl.GradientDescent(bl.Relative(0.5)), h, data)
    np.testing.assert_allclose(found, 1 / largest, rtol=0.03)
    heavy = bl.SGD(bl.Relative(0.5), momentum=0.9)
    np.testing.assert_allclose(step_size_of(heavy, h, data), 1.9 / largest, rtol=0.03)


@pytest.mark.parametrize("momentum", [None, 0.5, 0.9])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_the_minibatch_limit_is_below_the_exact_mean_square_limit_and_not_far(batch_size, momentum):
    data = make_data(n=80, d=3)
    x, h = np.asarray(data.inner[0], float), -2.0
    hessians = x[:, :, None] * x[:, None, :] + np.exp(h) * np.eye(3)
    exact = noise.minibatch.step_limit(hessians, 1 / batch_size, momentum or 0.0)
    solver = bl.SGD(bl.Relative(1.0), batch_size, momentum)
    share = float(step_size_of(solver, h, data) / exact)
    assert 0.1 < share < 1.02


@pytest.mark.parametrize(
    "solver",
    [
        bl.GradientDescent(bl.Relative(0.5)),
        bl.SGD(bl.Relative(0.5), momentum=0.5, nesterov=True),
        bl.SVRG(bl.Relative(0.9), batch_size=2),
        bl.SAGA(bl.Relative(0.9), batch_size=2),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_no_penalty_outgrows_it(solver):
    data = make_data()
    for h in (0.0, 5.0, 12.0):
        w = bl.solve(PROBLEM, solver, h, jnp.ones(5), data, KEY, steps=600)
        exact = solution(data, h)
        # In float32 the tables of SAGA leave .3 % at the largest penalty, however many the steps.
        np.testing.assert_allclose(w, exact, rtol=1e-3, atol=5e-3 * np.linalg.norm(exact))


def test_minibatches_stay_near_the_solution_under_penalties_that_change_from_call_to_call():
    data, solver = make_data(), bl.SGD(bl.Relative(0.5), batch_size=4, sampling="epoch")
    estimator = bl.Implicit(solver, steps=200)
    h, state = jnp.asarray(0.0), None
    for h in (0.0, 8.0, -3.0, 14.0):
        estimate, state = bl.hypergradient(
            PROBLEM, estimator, h, jnp.ones(5), data, KEY, state=state, evidence="off"
        )
        assert float(estimate.evidence.inner_residual) < 1
        np.testing.assert_allclose(state.params, solution(data, h), atol=0.3)


@pytest.mark.parametrize("start", [None, lambda h, w: w + h])
def test_the_derivative_is_that_of_steps_of_this_size(start):
    data, h, w = make_data(), jnp.asarray(0.3), jnp.ones(5)
    problem = bl.Problem(ridge, validation, start=start)
    relative = bl.GradientDescent(bl.Relative(0.5))
    begun = w if start is None else start(h, w)
    number = bl.GradientDescent(step_size_of(relative, h, data, begun))
    for estimator in (bl.Reverse, bl.Forward):
        one, _ = bl.hypergradient(problem, estimator(relative, steps=7), h, w, data, KEY)
        same, _ = bl.hypergradient(problem, estimator(number, steps=7), h, w, data, KEY)
        np.testing.assert_allclose(one.grad, same.grad, rtol=1e-5)
        np.testing.assert_allclose(one.value, same.value, rtol=1e-5)


SOLVER = bl.SGD(bl.Relative(0.5), batch_size=8)


@pytest.mark.parametrize(
    "estimator",
    [
        bl.Implicit(SOLVER, steps=300),
        bl.Forward(SOLVER, steps=300),
        bl.OneStep(SOLVER, steps=300),
        bl.PES(SOLVER, steps=300, pairs=4),
        bl.UORO(SOLVER, steps=300),
        bl.Penalty(SOLVER, steps=300),
        bl.Replicated(bl.Reverse(SOLVER, steps=300), 2),
        bl.Auto(solver=SOLVER, steps=300),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_every_estimator_that_runs_a_solver_measures(estimator):
    h, w = jnp.asarray(9.0), jnp.ones(5)
    estimate, _ = bl.hypergradient(PROBLEM, estimator, h, w, make_data(), KEY, evidence="off")
    assert float(estimate.value) < 10
    assert np.isfinite(estimate.grad)


def test_it_composes_with_vmap_and_a_new_fraction_compiles_nothing():
    data, w = make_data(), jnp.ones(5)

    def answer(h, fraction=0.5):
        solver = bl.GradientDescent(bl.Relative(fraction))
        return bl.solve(PROBLEM, solver, h, w, data, KEY, steps=400)

    hypers = jnp.array([0.0, 12.0])
    found = jax.vmap(answer)(hypers)
    for h, one in zip(hypers, found, strict=True):
        np.testing.assert_allclose(one, solution(data, float(h)), rtol=1e-3, atol=1e-8)
    h = jnp.asarray(1.0)
    estimators = [bl.Reverse(bl.SGD(bl.Relative(f)), steps=5) for f in (0.5, 0.25)]
    bl.hypergradient(PROBLEM, estimators[0], h, w, data, KEY, max_error=jnp.inf)
    with compilations() as compiled:
        bl.hypergradient(PROBLEM, estimators[1], h, w, data, KEY, max_error=jnp.inf)
    assert int(compiled) == 0


def test_a_schedule_of_fractions_and_flat_losses_have_steps():
    data = make_data()
    decaying = bl.SGD(bl.Relative(lambda count: 0.9 / (1 + count)))
    assert 0 < float(step_size_of(decaying, 0.0, data)) < 2
    flat = bl.Problem(lambda w, h, x: jnp.mean(x) * jnp.sum(w) * h, lambda w, h, x: jnp.sum(w))
    rows = bl.Data(jnp.ones(3), jnp.ones(1))
    solver = bl.GradientDescent(bl.Relative())
    w = bl.solve(flat, solver, 1.0, jnp.ones(2), rows, KEY, steps=2)
    assert np.isfinite(w).all()


def test_bfloat16_params_stay_so():
    data = jax.tree.map(lambda a: a.astype(jnp.bfloat16), make_data())
    h, start = jnp.asarray(1.0, jnp.bfloat16), jnp.zeros(5, jnp.bfloat16)
    w = bl.solve(PROBLEM, bl.SGD(bl.Relative(), 4), h, start, data, KEY, steps=20)
    assert w.dtype == jnp.bfloat16
    assert bool(jnp.isfinite(w).all())


def test_what_it_cannot_be_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Relative: fraction must not depend on hyper"):
        bl.Relative(lambda count, hyper: hyper)
    with pytest.raises(ValueError, match=r"Relative.*fraction.*positive"):
        bl.Relative(0.0)
    for refused in (
        lambda: bl.SingleLoop(step_size=bl.Relative()),
        lambda: bl.Richardson(bl.Forward(bl.SGD(bl.Relative(), 4), steps=5)),
        lambda: bl.SGD(0.1, momentum=bl.Relative()),
    ):
        with pytest.raises((TypeError, ValueError), match="Relative"):
            refused()
