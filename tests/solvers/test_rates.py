"""How fast iterates and derivatives converge, and where a solver's step size stops contracting."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import logistic, ridge
from tests.marks import quick_cases
from tests.solvers.cases import L1, flat, make, squared

pytestmark = pytest.mark.usefixtures("x64")


def errors(solver: Any, seed: int, steps: int, calls: int) -> list[float]:
    """Relative error of the hypergradient after `steps`, `2 steps`, ... steps, on ridge."""
    case, state, found = ridge(seed), None, []
    _, exact = case.exact(case.hyper)
    for call in range(calls):
        estimate, state = bl.hypergradient(
            case.problem,
            bl.Forward(solver, steps),
            case.hyper,
            case.params,
            case.data,
            jax.random.fold_in(jax.random.key(seed), call),
            state=state,
        )
        found.append(float(np.linalg.norm(estimate.grad - exact) / np.linalg.norm(exact)))
    return found


@quick_cases(1, "seed", [0, 1])
@pytest.mark.parametrize("make_solver", [bl.SVRG, bl.SAGA])
def test_derivative_converges_geometrically(make_solver: Any, seed: int) -> None:
    """To rounding, where the derivative of SGD with the same step size stays at its noise floor."""
    first, second, third = errors(make_solver(step_size=0.05, batch_size=4), seed, 120, 3)
    assert second < first / 20
    assert third < second / 20
    last = errors(make_solver(step_size=0.05, batch_size=4), seed, 900, 1)[0]
    assert last < 1e-13
    floor = errors(bl.SGD(step_size=0.05, batch_size=4), seed, 900, 3)
    assert min(floor) > 1e-3


@pytest.mark.extended
def test_derivative_of_newton_converges_quadratically() -> None:
    case, state, error = logistic(0), None, []
    solver = bl.Newton(linear=bl.CG(tol=1e-14))
    _, exact = bl.testing.dense_hypergradient(case.problem, case.hyper, case.params, case.data)
    for _ in range(3):
        estimate, state = bl.hypergradient(
            case.problem,
            bl.Forward(solver, 1),
            case.hyper,
            case.params,
            case.data,
            jax.random.key(0),
            state=state,
        )
        error.append(abs(float(estimate.grad / exact) - 1))
    digits = -np.log10(error)
    assert digits[0] > 1
    assert digits[1] > 2 * digits[0]
    assert digits[2] > 2 * digits[1]


def test_derivative_of_lasso_is_that_on_the_support() -> None:
    """`X_S^T X_S / n D = -alpha sign(w_S)` for `d w_S / d log alpha`; 0 elsewhere."""
    case = make("lasso")
    estimator = bl.Forward(bl.FISTA(step_size=1 / case.curvature), steps=300)
    estimate, lower = bl.hypergradient(
        case.problem, estimator, case.hyper, case.params, case.data, jax.random.key(0)
    )
    w, on = np.asarray(lower.params), case.solution != 0
    assert ((w != 0) == on).all()
    assert 0 < on.sum() < on.size
    X = case.data.inner[0][:, on]
    derivative = np.zeros(w.size)
    derivative[on] = np.linalg.solve(X.T @ X / len(X), -L1 * np.sign(w[on]))
    outer = jax.grad(lambda w: squared(w, case.data.outer) + L1 * jnp.sum(w) / 10)(w)
    expected = derivative @ outer + L1 * w.sum() / 10
    np.testing.assert_allclose(estimate.grad, [expected, 0], rtol=1e-10, atol=1e-12)


def test_acceleration() -> None:
    """On a condition number of 1e4 FISTA gains what 20 times as many plain steps do."""
    curvature = np.array([1.0, 1e-2, 1e-4])
    problem = bl.Problem(
        lambda w, h, c: jnp.sum(c * (w - 1) ** 2) / 2, squared, prox=lambda w, h, step: w
    )
    data = bl.Data(inner=curvature, outer=curvature)

    def error(solver: Any, steps: int) -> float:
        w = bl.solve(problem, solver, 0.0, np.zeros(3), data, jax.random.key(0), steps=steps)
        return float(np.abs(w - 1).max())

    fast = error(bl.FISTA(step_size=1.0), 400)
    assert fast < error(bl.ProximalGradient(step_size=1.0), 8000)
    assert fast < error(bl.FISTA(step_size=1.0, restart=False), 400)


def test_inverse_time_is_the_step_of_the_theory() -> None:
    problem = bl.Problem(lambda w, h, x: w * jnp.mean(x), squared)  # every gradient is 1
    data = bl.Data(inner=np.ones(3), outer=np.ones(3))
    solver = bl.SGD(step_size=bl.InverseTime(mu=0.5, L=2.0), batch_size=2)
    w = bl.solve(problem, solver, 0.0, np.array(0.0), data, jax.random.key(0), steps=50)
    np.testing.assert_allclose(-w, sum(2 / (0.5 * (k + 8 * 4**2)) for k in range(50)))


LIMITS = {
    "gradient_descent": lambda s: bl.GradientDescent(step_size=s),
    "heavy_ball": lambda s: bl.SGD(step_size=s, momentum=0.8),
    "nesterov": lambda s: bl.SGD(step_size=s, momentum=0.8, nesterov=True),
    "proximal": lambda s: bl.ProximalGradient(step_size=s),
    "fista": lambda s: bl.FISTA(step_size=s, restart=False),
    "svrg": lambda s: bl.SVRG(step_size=s, batch_size=None),
    "saga": lambda s: bl.SAGA(step_size=s, batch_size=None),
}


@pytest.mark.parametrize("name", list(LIMITS))
def test_contracts_up_to_the_declared_curvature(name: str) -> None:
    prox = (lambda w, h, step: w) if name in ("proximal", "fista") else None
    problem = bl.Problem(lambda w, h, x: jnp.mean(x) * w**2 / 2, squared, prox=prox)
    data = bl.Data(inner=np.ones(3), outer=np.ones(3))

    def distance(curvature: float) -> float:
        unit = LIMITS[name](1.0)
        limit = unit.max_curvature(0.0, unit.init(jnp.ones(()), data.inner))
        solver = LIMITS[name](curvature * float(limit))
        w = bl.solve(problem, solver, 0.0, np.array(1.0), data, jax.random.key(0), steps=500)
        return abs(float(flat(w)[0]))

    assert distance(0.97) < 1e-3
    assert distance(1.03) > 1e3
