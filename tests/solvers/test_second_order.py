"""L-BFGS, Newton and external solvers where others fail, and the implicit derivative on top."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import Ridge

import bilevel as bl
from bilevel.testing import dense_hypergradient, mlp, ridge
from tests.marks import quick_cases
from tests.solvers.cases import squared

pytestmark = pytest.mark.usefixtures("x64")


def call(solver: Any, steps: int, case: Any, **options: Any) -> tuple[bl.Estimate, bl.InnerState]:
    hyper = options.pop("hyper", case.hyper)
    estimator = bl.Implicit(solver, steps, linear=bl.CG(tol=1e-12))
    return bl.hypergradient(
        case.problem, estimator, hyper, case.params, case.data, jax.random.key(0), **options
    )


@quick_cases(1, "solver", [bl.LBFGS(), bl.Newton()])
def test_implicit_derivative_on_top(solver: Any) -> None:
    case = mlp(0)
    estimate, lower = call(solver, 60, case)
    _, exact = dense_hypergradient(case.problem, case.hyper, lower.params, case.data)
    assert estimate.evidence.inner_residual < 1e-10
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), estimate.grad, exact)


@pytest.mark.parametrize("solver", [bl.LBFGS(), bl.Newton()])
def test_identity_design(solver: Any) -> None:
    """A line search finds the minimum at once; unrolled through it the derivative is -1.5.

    `w* = y / (1 + h)`, `outer = |w - 1|^2 / 2`, so `grad = -sum (w* - 1) y / (1 + h)^2`.
    """
    y, h = np.array([2.0, 1.0, 3.0]), 1.0
    problem = bl.Problem(
        lambda w, h, t: jnp.sum((w - t) ** 2) / 2 + h * w @ w / 2,
        lambda w, h, t: jnp.sum((w - t) ** 2) / 2,
    )
    estimate, _ = bl.hypergradient(
        problem,
        bl.Implicit(solver, steps=4),
        h,
        np.zeros(3),
        bl.Data(inner=y, outer=np.ones(3)),
        jax.random.key(0),
    )
    exact = -np.sum((y / (1 + h) - 1) * y) / (1 + h) ** 2
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-10)


def test_lbfgs_takes_the_steps_of_scipy() -> None:
    """On a condition number of 1e6, until rounding tells the two apart."""
    curvature = np.logspace(0, -6, 12)
    problem = bl.Problem(lambda w, h, c: jnp.sum(c * (w - 1) ** 2) / 2, squared)
    data, key = bl.Data(inner=curvature, outer=curvature), jax.random.key(0)
    w = bl.solve(problem, bl.LBFGS(), 0.0, np.zeros(12), data, key, steps=20)
    reference = scipy.optimize.minimize(
        lambda w: (np.sum(curvature * (w - 1) ** 2) / 2, curvature * (w - 1)),
        np.zeros(12),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20, "ftol": 0, "gtol": 0, "maxcor": 10},
    )
    np.testing.assert_allclose(problem.inner(w, 0.0, curvature), reference.fun, rtol=1e-6)


def test_lbfgs_rests_at_the_minimum() -> None:
    """Where rounding hides every decrease further steps change nothing, least of all to NaN."""
    with jax.enable_x64(False):
        problem = bl.Problem(lambda w, h, c: jnp.sum(c * (w - 1) ** 2) / 2 + 3, squared)
        data = bl.Data(inner=np.array([1.0, 0.3, 0.01]), outer=np.ones(1))

        def run(steps: int) -> Any:
            key = jax.random.key(0)
            return bl.solve(problem, bl.LBFGS(), 0.0, np.zeros(3), data, key, steps=steps)

        early, late = run(60), run(160)
        np.testing.assert_array_equal(early, late)
        np.testing.assert_allclose(late, 1, atol=1e-2)


def test_lbfgs_uses_what_it_learned_before_hyper_moved() -> None:
    """Three steps per call: old curvature pairs help, and the one across the move does no harm."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 12)) * np.logspace(0, -1.5, 12)
    y = np.sign(X @ rng.standard_normal(12) + 0.3 * rng.standard_normal(60))
    problem = bl.Problem(
        lambda w, h, batch: (
            jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w))) + jnp.exp(h) * w @ w / 2
        ),
        lambda w, h, batch: w @ w,
    )
    data, solver = bl.Data(inner=(X, y), outer=np.ones(1)), bl.LBFGS()

    def left(forgets: bool) -> float:
        start, sizes = jnp.zeros(12), []
        _, state = bl.hypergradient(
            problem, bl.Implicit(solver, 3), -4.0, start, data, jax.random.key(0)
        )
        for turn in range(16):
            if forgets:
                fresh = solver.init(start, data.inner)
                state = dataclasses.replace(state, solver_state=fresh)
            hyper = -4 - 0.1 * turn
            _, state = bl.hypergradient(
                problem, bl.Implicit(solver, 3), hyper, start, data, jax.random.key(0), state=state
            )
            gradient = jax.grad(problem.inner)(state.params, hyper, data.inner)
            sizes.append(float(jnp.linalg.norm(gradient)))
        return float(np.exp(np.mean(np.log(sizes[4:]))))

    assert left(forgets=False) < left(forgets=True) / 2


@pytest.mark.parametrize("solver", [bl.LBFGS(), bl.Newton()])
def test_leaves_a_maximum(solver: Any) -> None:
    """`(w^2 - 1)^2` from just beside its maximum at 0, where the curvature is negative."""
    problem = bl.Problem(lambda w, h, x: jnp.mean((w**2 - x) ** 2), squared)
    data = bl.Data(inner=np.ones(2), outer=np.ones(2))
    w = bl.solve(problem, solver, 0.0, np.array(0.01), data, jax.random.key(0), steps=40)
    np.testing.assert_allclose(w, 1.0, rtol=1e-9)


def sklearn_ridge(w: Any, h: Any, data: Any) -> Any:
    X, y = data
    scale = np.exp(-h / 2)  # a penalty per feature is one penalty on scaled features
    model = Ridge(alpha=len(y), fit_intercept=False, solver="cholesky")
    return scale * model.fit(X * scale, y).coef_


def test_external_solver_with_the_implicit_derivative() -> None:
    case = ridge(0)
    estimate, _ = call(bl.External(sklearn_ridge), 1, case)
    value, grad = case.exact(case.hyper)
    np.testing.assert_allclose(estimate.value, value, rtol=1e-10)
    np.testing.assert_allclose(estimate.grad, grad, rtol=1e-8)
    assert estimate.evidence.inner_residual < 1e-12


@pytest.mark.parametrize("way", ["_in_place", "_copied"])
def test_external_solver_on_large_arrays(way: str) -> None:
    """Float64 stays float64 in JAX's own threads, and on CPU one thread is enough.

    On the second path JAX itself needs two threads for arrays above 100 kB (on CPU: on a GPU, for
    which it is, another device's threads copy).
    """
    rows = 2000 if way == "_in_place" else 20
    data = np.full((rows, 500), 1 / 3)
    solver = bl.External(lambda w, h, x: x.mean(axis=0) * h)
    with jax.default_device(jax.devices("cpu")[0]):
        found = jax.jit(getattr(solver, way))(np.zeros(500), 2.0, data)
    np.testing.assert_allclose(found, 2 / 3, rtol=1e-14)


def test_external_solver_must_not_write_into_its_arguments() -> None:
    def spoil(w: Any, h: Any, x: Any) -> Any:
        x[0] += 1
        return w

    case = ridge(0)
    arguments = case.problem, bl.External(spoil), case.hyper, case.params, case.data
    with pytest.raises(jax.errors.JaxRuntimeError, match="read-only"):
        jax.block_until_ready(bl.solve(*arguments, jax.random.key(0), steps=1))


@quick_cases(1, "make", [bl.LBFGS, lambda tol: bl.Newton(bl.CG(tol=0.1), tol=tol)])
def test_stops_at_its_tolerance(make: Any) -> None:
    """The gradient is as small as asked, and where little is asked not much smaller."""
    case = mlp(0)

    @jax.jit
    def size(params: Any) -> Any:
        gradient = jax.grad(case.problem.inner)(params, case.hyper, case.data.inner)
        return jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))

    ends = [size(call(make(tol=tol), 200, case)[1].params) for tol in (1e-2, 1e-5)]
    begun = size(case.params)
    assert 1e-5 * begun < ends[0] <= 1e-2 * begun
    assert ends[1] <= 1e-5 * begun


@pytest.mark.extended
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_step_of_newton_is_exact_under_interpolation(dtype: Any) -> None:
    """The loss is 0 at its minimum, and beside it all rounding, which no step size may follow.

    ``inner = (h w^2 - 2)^2 / 2``, so ``w* = sqrt(2 / h)`` and ``dw*/dh = -sqrt(2) h^-1.5 / 2``;
    a constant that is added changes nothing.
    """
    problem = bl.Problem(lambda w, h, x: jnp.mean((h * w**2 - 2) ** 2 / 2 + x), lambda w, h, x: w)
    hypers = np.tile(np.linspace(0.5, 8, 16, dtype=dtype), 2)
    constants = np.repeat(np.array([0, 1], dtype), 16)
    for estimator in (
        bl.OneStep(bl.Newton(), 6),
        bl.OneStep(bl.Newton(), 30),
        bl.Reverse(bl.Newton(), 30, truncate=1),
    ):

        def grad(h: Any, constant: Any, estimator: Any = estimator) -> Any:
            data = bl.Data(inner=jnp.full(3, constant), outer=np.zeros(1, dtype))
            start, key = jnp.ones((), dtype), jax.random.key(0)
            return bl.hypergradient(problem, estimator, h, start, data, key)[0].grad

        found = jax.vmap(grad)(hypers, constants)
        tolerance = 1e-4 if dtype == np.float64 else 5e-3
        np.testing.assert_allclose(found, -np.sqrt(2) * hypers**-1.5 / 2, rtol=tolerance)


STOPPING: dict[str, Any] = {
    "Implicit": lambda solver, steps: bl.Implicit(solver, steps),
    "Implicit, window": lambda solver, steps: bl.Implicit(solver, steps, average=10),
    "Penalty": lambda solver, steps: bl.Penalty(solver, steps, gamma=10.0),
    "Evolution": lambda solver, steps: bl.Evolution(solver, steps, pairs=2),
    "PES": lambda solver, steps: bl.PES(solver, steps, pairs=2),
}


@pytest.mark.parametrize("name", STOPPING)
def test_counts_end_where_the_solver_stopped(name: str) -> None:
    """A quadratic takes Newton one step, and a second one to see that it is there."""
    data = bl.Data(inner=np.array([1.0, 3.0]), outer=np.zeros(1))
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
        lambda w, h, x: (w - 1) ** 2 / 2,
    )
    chains = {"Implicit": 1, "Implicit, window": 1, "Penalty": 3}.get(name, 5)

    def gradients(solver: Any, steps: int) -> int:
        estimator = STOPPING[name](solver, steps)
        arguments = problem, estimator, 1.0, 0.0, data, jax.random.key(0)
        return int(bl.hypergradient(*arguments)[0].evidence.counts.gradients)

    assert gradients(bl.Newton(tol=1e-6), 100) == 2 * chains + 1
    assert gradients(bl.Newton(), 20) == 20 * chains + 1
