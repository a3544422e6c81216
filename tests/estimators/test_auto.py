"""Auto: which estimator it takes, and that the answer is within the tolerance that it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import dense_hypergradient, logistic, mlp
from tests.marks import quick_cases

KEY = jax.random.key(0)
SGD = bl.SGD(step_size=0.1, batch_size=7)


def least_squares(d: int, condition: float) -> tuple:
    """Ridge on a diagonal design of known conditioning: `w*`, `grad` by hand in NumPy."""
    curvature = np.logspace(0, -np.log10(condition), d)
    target = np.random.default_rng(0).standard_normal(d)

    def inner(w, h, batch):
        c, y = batch
        return jnp.sum(c * (w - y) ** 2) / 2 + jnp.exp(h) * w @ w / 2

    def outer(w, h, batch):
        return jnp.sum((w - 1) ** 2) / 2

    penalty = 0.1 / condition
    w = curvature * target / (curvature + penalty)
    exact = -np.sum((w - 1) * penalty * w / (curvature + penalty))
    problem = bl.Problem(inner, outer, quadratic=True)
    data = bl.Data(inner=(curvature, target), outer=np.ones(1))
    return problem, np.log(penalty), np.zeros(d), data, exact


@pytest.mark.usefixtures("x64")
@quick_cases(1, "condition", [3.0, 1e8])
def test_quadratic_is_solved_whatever_its_condition(condition: float) -> None:
    """Products for the easy one, no more than a quarter of d; the factorisation for the hard."""
    d = 300
    problem, h, w, data, exact = least_squares(d, condition)
    estimate, _ = bl.hypergradient(problem, bl.Auto(1e-6), h, w, data, KEY)
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-6)
    hvps = int(estimate.evidence.counts.hvps)
    assert hvps <= d // 4 if condition == 3.0 else d <= hvps <= 1.25 * d


@pytest.mark.usefixtures("x64")
@quick_cases(1, "make", [logistic, mlp])
def test_smooth_problem_is_within_the_tolerance(make) -> None:
    case = make(0)

    def answer(tolerance: float) -> tuple:
        args = (case.problem, bl.Auto(tolerance), case.hyper, case.params, case.data, KEY)
        estimate, state = bl.hypergradient(*args)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(estimate.grad)]), state

    minimum = answer(1e-12)[1].params
    _, exact = dense_hypergradient(case.problem, case.hyper, minimum, case.data)
    exact = np.concatenate([np.ravel(x) for x in jax.tree.leaves(exact)])
    for tolerance in (1e-1, 1e-3, 1e-6):
        error = np.linalg.norm(answer(tolerance)[0] - exact)
        assert error <= tolerance * np.linalg.norm(exact)


def test_start_point_and_step_size_are_unrolled() -> None:
    """What the minimiser does not know is seen through the steps, exactly as by Reverse."""
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
        start=lambda h, w: h["start"] + w,
    )
    solver = bl.SGD(lambda count, h: jnp.exp(h["rate"]), batch_size=3)
    data = bl.Data(inner=np.arange(5.0), outer=np.ones(1))
    hyper, w = {"start": np.array(1.0), "rate": np.array(-2.0)}, np.array(0.5)
    auto, by_hand = (
        bl.hypergradient(problem, e, hyper, w, data, KEY)[0]
        for e in (bl.Auto(solver=solver, steps=9), bl.Reverse(solver, 9))
    )
    jax.tree.map(np.testing.assert_array_equal, auto.grad, by_hand.grad)
    with pytest.raises(ValueError, match=r"Auto needs solver=.*does not depend on hyper\['rate'\]"):
        bl.hypergradient(problem, bl.Auto(), hyper, w, data, KEY)


@pytest.mark.parametrize(
    ("problem", "params", "solver", "expected"),
    [
        (dict(quadratic=True), 5, None, "ClosedForm"),
        (dict(quadratic=True), 500, None, "conjugate gradients, and ClosedForm"),
        (dict(quadratic=True), 5000, None, "Implicit after Newton-CG"),
        (dict(), 5, SGD, "Implicit after Newton-CG"),
        (
            dict(prox=lambda w, h, step: w),
            5,
            bl.FISTA(0.1),
            "Implicit: the problem has a non-smooth",
        ),
    ],
)
def test_choice_says_why(problem: dict, params: int, solver, expected: str) -> None:
    stated = bl.Problem(lambda w, h, x: h * w @ w, lambda w, h, x: jnp.sum(w), **problem)
    data = bl.Data(inner=np.ones(2), outer=np.ones(2))
    choice = bl.Auto(solver=solver).choose(stated, jnp.array(1.0), jnp.zeros(params), data)
    assert choice.reason.startswith(expected)


@pytest.mark.extended
def test_warm_start_goes_on() -> None:
    """A second call at the same hyper finds the residual small already: the last step alone."""
    case = logistic(0)
    args = (case.problem, bl.Auto(1e-2), case.hyper, case.params, case.data, KEY)
    before, first = bl.hypergradient(*args)
    after, _ = bl.hypergradient(*args, state=first)
    # The gradient that finds nothing to do, and those at both ends of the last step.
    assert after.evidence.counts.gradients == 3 < before.evidence.counts.gradients
    assert after.evidence.inner_residual <= before.evidence.inner_residual


@pytest.mark.parametrize("tolerance", [-1e-3, 1.0, "high"])
def test_a_tolerance_that_is_none_is_refused(tolerance) -> None:
    for make in (bl.Auto, lambda tol: bl.LBFGS(tol=tol), lambda tol: bl.Newton(tol=tol)):
        with pytest.raises((ValueError, TypeError), match="tol must"):
            make(tolerance)


def test_a_solver_that_may_rest_is_not_unrolled() -> None:
    problem = bl.Problem(lambda w, h, x: h * w @ w, lambda w, h, x: jnp.sum(w))
    data = bl.Data(inner=np.ones(2), outer=np.ones(2))
    estimator = bl.Reverse(bl.Newton(tol=1e-3), 3)
    with pytest.raises(ValueError, match="with tol its last steps may do nothing"):
        bl.hypergradient(problem, estimator, jnp.array(1.0), jnp.zeros(2), data, KEY)


def test_tune_watches_the_solver_that_runs_not_the_one_held_in_reserve() -> None:
    """The closed form takes no steps: an unstable step size given to Auto does no harm."""
    problem, h, w, data, _ = least_squares(3, 2.0)
    reserve = bl.Auto(solver=bl.SGD(step_size=1e3))
    run = bl.tune(problem, reserve, optax.sgd(0.1), h, w, data, steps=2, key=KEY)
    assert not run.diverged
