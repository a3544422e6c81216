"""A run stops by itself where it has converged, there only, and says so."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import minimize

import bilevel as bl


def ridge(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2 + jnp.sum(jnp.exp(h) * w**2) / 2


def validation(w, h, batch):
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


def make_data(seed, n=60, d=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = x @ np.array([1.0, 0.5, 0.0, 0.0]) + rng.normal(size=n)
    half = n // 2
    return bl.Data(inner=(x[:half], y[:half]), outer=(x[half:], y[half:]))


def exact_value(h, data):
    (x, y), (xv, yv) = data.inner, data.outer
    w = np.linalg.solve(x.T @ x / len(x) + np.diag(np.exp(h)), x.T @ y / len(x))
    return np.mean((xv @ w - yv) ** 2) / 2


PROBLEM = bl.Problem(ridge, validation, quadratic=True)
KEY = jax.random.key(0)
ZERO = np.zeros(4)


def run(outer, data=None, problem=PROBLEM, estimator=None, **how):
    arguments = (problem, estimator or bl.ClosedForm(), outer, ZERO, ZERO)
    return bl.tune(*arguments, make_data(0) if data is None else data, key=KEY, **how)


@pytest.mark.parametrize("rule", [bl.outer.Auto(), bl.outer.LBFGS()])
@pytest.mark.parametrize("seed", range(5))
def test_the_rules_stop_near_the_optimum_long_before_their_steps_are_spent(rule, seed):
    data = make_data(seed)
    result = run(rule, data, steps=400)
    best = min(
        minimize(exact_value, np.full(4, start), args=(data,), bounds=[(-15, 15)] * 4).fun
        for start in (-1.0, 0.0)
    )
    assert bool(result.converged)
    assert len(result.history["value"]) == int(result.state.step) < 100
    assert "converged after" in result.message
    assert exact_value(np.asarray(result.hyper), data) < best * (1 + 3e-3)


def test_a_smaller_tolerance_takes_more_steps_and_none_takes_all():
    steps = [int(run(bl.outer.Auto(), steps=60, tol=tol).state.step) for tol in (1e-2, 1e-4, None)]
    assert steps[0] < steps[1] < steps[2] == 60
    assert not run(bl.outer.Auto(), steps=5).converged


def test_optax_makes_all_steps_unless_asked():
    still = optax.sgd(0.0)
    full = run(still, steps=20)
    assert not full.converged
    assert int(full.state.step) == 20
    # Values that stand are not enough: the hypergradient says that there is something to gain.
    assert not run(still, steps=20, tol=1e-4).converged
    data = make_data(0)
    asked = run(optax.adam(0.3), data, steps=500, tol=1e-4)
    assert bool(asked.converged)
    assert int(asked.state.step) < 500


def test_cut_anywhere_it_stops_at_the_same_step_and_composes_with_vmap():
    whole = run(bl.outer.Auto(), steps=100)
    first = run(bl.outer.Auto(), steps=4)
    rest = run(bl.outer.Auto(), steps=96, state=first.state)
    np.testing.assert_array_equal(rest.hyper, whole.hyper)
    assert int(rest.state.step) == int(whole.state.step)
    again = run(bl.outer.Auto(), steps=10, state=whole.state)
    assert bool(again.converged)
    assert len(again.history["value"]) == 0

    def from_start(h):
        rule = bl.outer.Auto()
        return bl.tune(PROBLEM, bl.ClosedForm(), rule, h, ZERO, make_data(0), steps=60, key=KEY)

    both = jax.vmap(from_start)(jnp.stack([ZERO, ZERO + 1]))
    assert both.converged.all()
    assert int(both.state.step[0]) == int(whole.state.step)


def test_noise_that_hides_the_hypergradient_does_not_pass_for_progress():
    # Every value differs by the noise of the inner solver, so that nothing stands at 1e-8.
    estimator = bl.Implicit(bl.SGD(bl.Relative(0.5), batch_size=4), steps=20)
    assert not run(optax.sgd(0.01), estimator=estimator, steps=30, tol=1e-8).converged


@pytest.mark.parametrize(("begun", "converged"), [(None, False), (1.0, False), (100.0, True)])
def test_an_error_of_its_own_size_is_no_small_hypergradient(begun, converged):
    # The value of the best point stands, and all that is known of the gradient is that it is noise.
    def step(value, length, error):
        estimate = SimpleNamespace(value=jnp.array(value), relative_error=jnp.array(error))
        kept = SimpleNamespace(grad=jnp.array([length, 0.0]))
        state = SimpleNamespace(estimate=estimate)
        return SimpleNamespace(made=estimate, best=None, kept=kept, state=state)

    hook = bl.Convergence(1e-3)
    memory = hook.init(ZERO, ZERO)
    if begun is not None:
        memory = hook.update(memory, step(2.0, begun, 0.1))
    for _ in range(8):
        memory = hook.update(memory, step(1.0, 1.0, 2.0))
    assert bool(memory.converged) is converged


def test_bad_tolerances_are_refused():
    with pytest.raises(ValueError, match="tol must be a number, None or 'auto', got 'tight'"):
        run(bl.outer.Auto(), steps=5, tol="tight")
    with pytest.raises(ValueError, match=r"tol must lie in \[0, 1\)"):
        run(bl.outer.Auto(), steps=5, tol=2.0)


def test_a_hook_of_the_users_own_takes_the_place_of_tol():
    result = run(optax.adam(0.3), steps=500, tol=None, hooks=[bl.Convergence(1e-3)])
    assert bool(result.converged)
