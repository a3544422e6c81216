"""A run in a space is the run on a problem whose losses make natural units themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel import single_loop
from bilevel.spaces import Box, Log, Simplex, Tied
from tests.tuning.test_tune import assert_same

rng = np.random.default_rng(0)
X = rng.normal(size=(30, 4))
Y = X @ np.array([1.0, 0.5, 0.0, 0.0]) + 0.5 * rng.normal(size=30)
DATA = bl.Data(inner=(X[:20], Y[:20]), outer=(X[20:], Y[20:]))
PARAMS, KEY = np.zeros(4), jax.random.key(1)
HYPER = {
    "penalty": np.array([0.1, 0.2, 0.2, 0.3]),
    "mix": np.array([0.25, 0.75]),
    "clip": np.array(0.5),
}
SPACE = {"penalty": Tied("abbc", Log()), "mix": Simplex(), "clip": Box(0.0, 2.0)}


def inner(w: Any, h: Any, batch: Any) -> Any:
    """Two losses mixed, of a scaled target, and a penalty; NaN outside the space."""
    residual = batch[0] @ w - h["clip"] * batch[1]
    losses = jnp.stack([jnp.mean(residual**2) / 2, jnp.mean((batch[0] @ w - 1) ** 2)])
    inside = (
        jnp.sum(0 * jnp.log(h["penalty"])) + 0 * jnp.log(h["clip"]) + 0 * jnp.log(2 - h["clip"])
    )
    return h["mix"] @ losses + jnp.sum(h["penalty"] * w**2) / 2 + inside


def outer(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2 + 0.01 * h["mix"][0] + 0.01 * h["clip"] ** 2


def by_hand(x: Any) -> Any:
    return {
        "penalty": jnp.exp(x["penalty"])[jnp.array([0, 1, 1, 2])],
        "mix": jax.nn.softmax(x["mix"]),
        "clip": 2 * jax.nn.sigmoid(x["clip"]),
    }


FREE = {
    "penalty": np.log([0.1, 0.2, 0.3]),
    "mix": np.log([0.25, 0.75]) - np.mean(np.log([0.25, 0.75])),
    "clip": -np.log(3),
}
IN_SPACE = bl.Problem(inner, outer, space=SPACE, quadratic=True)
COMPOSED = bl.Problem(
    lambda w, x, b: inner(w, by_hand(x), b),
    lambda w, x, b: outer(w, by_hand(x), b),
    quadratic=True,
)
DESCENT = optax.sgd(0.5)
STEP = bl.GradientDescent(0.2)
ESTIMATORS = {
    "Reverse": bl.Reverse(STEP, steps=5),
    "Implicit": bl.Implicit(STEP, steps=20),
    "SingleLoop": bl.SingleLoop(0.1, batch_size=7, steps=2),
}

SLOW = pytest.mark.slow


def record(hyper: Any, params: Any, estimate: Any) -> Any:
    return hyper


def tune(problem: Any, estimator: Any, hyper: Any, **more: Any) -> bl.Result:
    settings = {"steps": 6, "key": KEY, "hooks": [bl.Record(record)]} | more
    return bl.tune(problem, estimator, optax.adam(0.1), hyper, PARAMS, DATA, **settings)


@SLOW
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_is_the_run_with_the_map_in_the_losses(name: str) -> None:
    """With tied entries, a simplex and a box at once, for every kind of estimator."""
    run = tune(IN_SPACE, ESTIMATORS[name], HYPER)
    other = tune(COMPOSED, ESTIMATORS[name], FREE)
    for key, value in by_hand(other.hyper).items():
        np.testing.assert_allclose(run.hyper[key], value, rtol=1e-9, err_msg=key)
        assert not np.allclose(run.hyper[key], HYPER[key], rtol=1e-2)
    np.testing.assert_allclose(run.history["value"], other.history["value"], rtol=1e-9)
    np.testing.assert_allclose(run.history["free_grad_norm"], other.history["grad_norm"], rtol=1e-7)
    np.testing.assert_allclose(run.history["clip"][0], 0.5)  # natural units are recorded
    np.testing.assert_allclose(run.history["mix"].sum(1), 1)
    assert run.history["penalty"].shape == (6, 4)


@pytest.mark.usefixtures("x64")
def test_it_is_gradient_descent_in_coordinates_and_can_be_cut() -> None:
    """Of a ridge fit in NumPy: tied log-penalties and a scale of the target between 0 and 2."""
    (A, y), (B, z) = DATA.inner, DATA.outer

    def loss(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    def fit(w: Any, h: Any, batch: Any) -> Any:
        shrunk = jnp.sum(h["penalty"] * w**2) / 2
        return loss(w, h, (batch[0], h["scale"] * batch[1])) + shrunk

    space = {"penalty": Tied("abba", Log()), "scale": Box(0.0, 2.0)}
    problem = bl.Problem(fit, loss, quadratic=True, space=space)
    hyper = {"penalty": np.array([0.1, 0.3, 0.3, 0.1]), "scale": np.array(0.5)}

    def run(steps: int, **more: Any) -> bl.Result:
        arguments = problem, bl.ClosedForm(), DESCENT, hyper, PARAMS, DATA
        return bl.tune(*arguments, steps=steps, hooks=[bl.Blocks(2)], **more)

    whole, half = run(4, key=KEY), run(2, key=KEY)
    rest = run(2, state=half.state)
    assert_same((rest.hyper, rest.state), (whole.hyper, whole.state))

    logs, odds = np.log([0.1, 0.3]), -np.log(3.0)
    for _ in range(4):
        penalty, scale = np.exp(logs)[[0, 1, 1, 0]], 2 / (1 + np.exp(-odds))
        H = A.T @ A / len(y) + np.diag(penalty)
        w = np.linalg.solve(H, A.T @ y * scale / len(y))
        slope = B.T @ (B @ w - z) / len(z)
        by_penalty = -np.linalg.solve(H, slope) * w * penalty
        logs = logs - 0.5 * np.array([by_penalty[[0, 3]].sum(), by_penalty[[1, 2]].sum()])
        odds = odds - 0.5 * (slope @ w / scale) * scale * (1 - scale / 2)
    np.testing.assert_allclose(whole.hyper["penalty"], np.exp(logs)[[0, 1, 1, 0]], rtol=1e-9)
    np.testing.assert_allclose(whole.hyper["scale"], 2 / (1 + np.exp(-odds)), rtol=1e-9)
    np.testing.assert_allclose(whole.estimate.grad["penalty"], by_penalty / penalty, rtol=1e-8)


@SLOW
@pytest.mark.usefixtures("x64")
def test_one_call_is_in_natural_units_and_so_is_a_start_point_that_depends_on_them() -> None:
    """The gradient is that of the value in natural units, by JAX through the plain loop."""
    problem = bl.Problem(inner, outer, space=SPACE, start=lambda h, w: w + h["clip"])
    estimator = bl.Reverse(STEP, steps=3)

    def value(h: Any) -> Any:
        w = bl.solve(problem, STEP, h, PARAMS, DATA, KEY, steps=3)
        return outer(w, h, DATA.outer)

    estimate, _ = bl.hypergradient(problem, estimator, HYPER, PARAMS, DATA, KEY)
    expected = jax.jit(jax.grad(value))(HYPER)
    for key, slope in expected.items():
        np.testing.assert_allclose(estimate.grad[key], slope, rtol=1e-9)


def test_a_closed_end_is_reached_and_left() -> None:
    """min (h - 2)^2 on [0, 1] is at 1; started there, min (h - 0.25)^2 is at 0.25."""

    def run(target: float, start: float) -> Any:
        problem = bl.Problem(
            lambda w, h, x: jnp.mean((w - h) ** 2) / 2,
            lambda w, h, x: (w - target) ** 2,
            space=Box(0.0, 1.0, closed=True),
        )
        data = bl.Data(np.zeros(1), np.zeros(1))
        estimator = bl.Implicit(bl.GradientDescent(1.0), steps=1)
        arguments = (problem, estimator, optax.sgd(0.25), start, 0.0, data)
        return bl.tune(*arguments, steps=40, key=KEY).hyper

    assert run(2.0, 0.5) == 1.0
    assert run(0.25, 1.0) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", ["Evolution", pytest.param("PES", marks=SLOW), pytest.param("PZOBO", marks=SLOW)]
)
def test_differences_never_leave_the_space_and_are_right(name: str) -> None:
    """A large sigma beside the boundary stays finite; a small one gives the slope, within 4 s.e."""
    hyper = HYPER | {"clip": np.array(1e-3)}

    def estimator(sigma: float) -> Any:
        if name == "PZOBO":
            return single_loop.PZOBO(0.2, inner_steps=5, pairs=200, mu=sigma)
        return getattr(bl, name)(STEP, steps=5, sigma=sigma, pairs=200)

    exact, _ = bl.hypergradient(IN_SPACE, ESTIMATORS["Reverse"], hyper, PARAMS, DATA, KEY)
    wide, _ = bl.hypergradient(IN_SPACE, estimator(0.5), hyper, PARAMS, DATA, KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(wide.grad))
    small, _ = bl.hypergradient(IN_SPACE, estimator(1e-4), hyper, PARAMS, DATA, KEY)
    free = IN_SPACE.space.free(hyper)
    pull = jax.jit(lambda grad: IN_SPACE.space.pull(free, grad))
    measured, slopes = pull(small.grad), pull(exact.grad)
    # In coordinates; a slope of the softmax was divided by the weights.
    error = small.evidence.standard_error
    error = pull(error) | {"mix": error["mix"] * hyper["mix"]}
    for key, slope in slopes.items():
        # false alarm: 6e-5
        assert np.max(np.abs(measured[key] - slope) / (error[key] + 1e-6)) < 4, key


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_check_steps_in_coordinates() -> None:
    """Central differences of width 1e-3 around a penalty of 1e-4 would leave the space."""
    problem = bl.Problem(
        lambda w, h, b: jnp.mean((b[0] @ w - b[1]) ** 2) / 2 + jnp.sum(h * w**2) / 2,
        lambda w, h, b: jnp.mean((b[0] @ w - b[1]) ** 2) / 2,
        space=Log(),
        quadratic=True,
    )
    estimators = {"ClosedForm": bl.ClosedForm()}
    report = bl.check(problem, np.full(4, 1e-4), PARAMS, DATA, estimators)
    assert report.agrees, str(report)
