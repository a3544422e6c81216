"""Inner equations against closed forms, dense solves and finite differences in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
ONE = bl.Data(inner=jnp.zeros(1), outer=jnp.zeros(1))
GMRES = bl.GMRES(tol=1e-12)


def linear_map(seed: int = 0, d: int = 5, radius: float = 0.7) -> tuple[Any, ...]:
    """``w = A w + B h + c``, A far from symmetric, and the hypergradient of ``|w - t|^2 / 2``."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((d, d)) + 2 * np.triu(rng.standard_normal((d, d)), 1)
    A *= radius / np.abs(np.linalg.eigvals(A)).max()
    B, c, t, h = (rng.standard_normal(s) for s in ((d, 3), d, d, 3))

    def fixed_point(w: jax.Array, h: jax.Array, _: Any) -> jax.Array:
        return A @ w + B @ h + c

    problem = bl.Problem(outer=lambda w, h, _: jnp.sum((w - t) ** 2) / 2, fixed_point=fixed_point)
    w = np.linalg.solve(np.eye(d) - A, B @ h + c)
    exact = B.T @ np.linalg.solve((np.eye(d) - A).T, w - t)
    return problem, jnp.asarray(h), jnp.zeros(d), w, exact


ESTIMATORS = {
    "Picard, implicit": bl.Implicit(bl.Picard(tol=1e-13), 300, linear=GMRES),
    "Anderson, implicit": bl.Implicit(bl.Anderson(tol=1e-13), 100, linear=GMRES),
    "Newton, BiCGSTAB": bl.Implicit(bl.Newton(), 2, linear=bl.BiCGSTAB(tol=1e-12)),
    "gradient steps, adjoint fixed point": bl.Implicit(
        bl.GradientDescent(0.5), 400, linear=bl.FixedPoint(tol=1e-12, step_size=0.5)
    ),
    "Picard, reverse": bl.Reverse(bl.Picard(), 200),
    "Picard, checkpoints": bl.Reverse(bl.Picard(), 200, memory="checkpoint"),
    "mixed, forward": bl.Forward(bl.Picard(0.8), 300),
    "Newton, reverse": bl.Reverse(bl.Newton(bl.GMRES(tol=1e-12)), 3, truncate=1),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_map_without_symmetry_against_the_dense_solve(name: str) -> None:
    problem, h, w, solution, exact = linear_map()
    estimate, state = bl.hypergradient(problem, ESTIMATORS[name], h, w, ONE, KEY)
    np.testing.assert_allclose(state.params, solution, rtol=1e-9)
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-8)
    assert estimate.relative_error < 1e-6


def test_the_evidence_sees_a_short_run() -> None:
    """Ten steps of a map of radius .95: the error is known, since the problem is small."""
    problem, h, w, _, exact = linear_map(radius=0.95)
    estimate, _ = bl.hypergradient(
        problem, bl.Reverse(bl.Picard(), 10), h, w, ONE, KEY, max_error=np.inf
    )
    true = np.linalg.norm(estimate.grad - exact) / np.linalg.norm(exact)
    assert true > 0.05
    assert estimate.relative_error == pytest.approx(true, rel=1e-6)


def test_a_game_of_two_players() -> None:
    """Each minimises a loss of its own: no loss has both gradients. Hyper sets the prices."""
    rng = np.random.default_rng(1)
    M, t = rng.standard_normal((4, 4)), rng.standard_normal(4)
    cross, h = M + M.T - 2 * M, jnp.asarray([0.3, -0.4])  # antisymmetric
    matrix = 3 * np.eye(4) + cross

    def optimality(w: Any, h: jax.Array, _: Any) -> Any:
        both = jnp.concatenate([w["one"], w["two"]])
        gradient = matrix @ both + jnp.repeat(jnp.exp(h), 2) * both - t
        return {"one": gradient[:2], "two": gradient[2:]}

    problem = bl.Problem(
        outer=lambda w, h, _: jnp.sum(w["one"] ** 2) - jnp.sum(w["two"]), optimality=optimality
    )
    start = {"one": jnp.zeros(2), "two": jnp.zeros(2)}
    estimator = bl.Implicit(bl.Newton(), 3, linear=GMRES)
    estimate, state = bl.hypergradient(problem, estimator, h, start, ONE, KEY)
    weights = np.repeat(np.exp(h), 2)
    jacobian = matrix + np.diag(weights)
    w = np.linalg.solve(jacobian, t)
    u = np.linalg.solve(jacobian.T, np.array([*(2 * w[:2]), -1, -1]))
    exact = -(u * weights * w).reshape(2, 2).sum(1)
    np.testing.assert_allclose(state.params["one"], w[:2], rtol=1e-10)
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-9)


def test_equality_constraints_through_their_conditions() -> None:
    """``min |x|_P^2 / 2 - h x`` on ``A x = b``: an indefinite system, with multipliers."""
    rng = np.random.default_rng(2)
    root, A, b = rng.standard_normal((5, 5)), rng.standard_normal((2, 5)), rng.standard_normal(2)
    P, h = root @ root.T + np.eye(5), rng.standard_normal(5)

    def optimality(w: Any, h: jax.Array, _: Any) -> Any:
        return {"x": P @ w["x"] - h + A.T @ w["dual"], "dual": A @ w["x"] - b}

    problem = bl.Problem(outer=lambda w, h, _: jnp.sum(w["x"] ** 2) / 2, optimality=optimality)
    start = {"x": jnp.zeros(5), "dual": jnp.zeros(2)}
    estimator = bl.Implicit(bl.Newton(), 2, linear=GMRES)
    estimate, state = bl.hypergradient(problem, estimator, jnp.asarray(h), start, ONE, KEY)
    kkt = np.block([[P, A.T], [A, np.zeros((2, 2))]])
    x = np.linalg.solve(kkt, np.concatenate([h, b]))[:5]
    exact = np.linalg.solve(kkt, np.concatenate([x, np.zeros(2)]))[:5]
    np.testing.assert_allclose(state.params["x"], x, rtol=1e-9)
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-8)


def test_bounds_as_a_projected_step() -> None:
    """``min |x|_P^2 / 2 - h x``, ``x >= 0``: the entries that are free solve their own system."""
    rng = np.random.default_rng(3)
    root = rng.standard_normal((6, 6))
    P, h = root @ root.T + np.eye(6), rng.standard_normal(6)
    step = 1 / np.linalg.eigvalsh(P)[-1]
    problem = bl.Problem(
        outer=lambda w, h, _: jnp.sum(w),
        fixed_point=lambda w, h, _: jnp.maximum(w - step * (P @ w - h), 0),
    )
    estimator = bl.Implicit(bl.Picard(tol=1e-14), 5000, linear=GMRES)
    estimate, state = bl.hypergradient(problem, estimator, jnp.asarray(h), jnp.zeros(6), ONE, KEY)
    free = np.asarray(state.params) > 1e-9
    assert 0 < free.sum() < 6
    x = np.linalg.solve(P[np.ix_(free, free)], h[free])
    assert (P @ np.asarray(state.params) - h)[~free].min() > 0  # the conditions of Kuhn, Tucker
    exact = np.zeros(6)
    exact[free] = np.linalg.solve(P[np.ix_(free, free)], np.ones(free.sum()))
    np.testing.assert_allclose(np.asarray(state.params)[free], x, rtol=1e-8)
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-7, atol=1e-10)


def layer(n: int = 12, d: int = 3) -> tuple[Any, ...]:
    """A deep equilibrium layer: ``z = tanh(W z + U x + b)``, a state per row, read out linearly."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((n, 2)), rng.standard_normal(n)
    hyper = {
        "W": 0.5 * rng.standard_normal((d, d)) / d**0.5,
        "U": rng.standard_normal((d, 2)),
        "read": rng.standard_normal(d),
    }
    problem = bl.Problem(
        outer=lambda z, h, batch: jnp.mean((z @ h["read"] - batch[1]) ** 2) / 2,
        fixed_point=lambda z, h, x: jnp.tanh(z @ h["W"].T + x @ h["U"].T),
    )
    data = bl.Data(inner=jnp.asarray(x), outer=(jnp.asarray(x), jnp.asarray(y)))
    return problem, jax.tree.map(jnp.asarray, hyper), jnp.zeros((n, d)), data


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_equilibrium_layer_against_differences_of_its_solution(dtype: Any) -> None:
    problem, hyper, z, data = layer()
    hyper, z, data = jax.tree.map(lambda x: x.astype(dtype), (hyper, z, data))
    tol = 1e-6 if dtype == jnp.float32 else 1e-13
    implicit = bl.Implicit(bl.Anderson(tol=tol), 60, linear=bl.GMRES(tol=tol))
    unrolled = bl.Reverse(bl.Picard(), 100)
    run = jax.jit(bl.hypergradient, static_argnums=0)
    a, _ = run(problem, implicit, hyper, z, data, KEY)
    b, _ = run(problem, unrolled, hyper, z, data, KEY)
    rtol = 2e-3 if dtype == jnp.float32 else 1e-8
    jax.tree.map(
        lambda p, q: np.testing.assert_allclose(p, q, rtol=rtol, atol=rtol), a.grad, b.grad
    )

    def value(W: np.ndarray) -> float:
        z, x, U = np.zeros((12, 3)), np.asarray(data.inner), np.asarray(hyper["U"])
        for _ in range(300):
            z = np.tanh(z @ W.T + x @ U.T)
        return float(np.mean((z @ np.asarray(hyper["read"]) - np.asarray(data.outer[1])) ** 2) / 2)

    W, along = np.asarray(hyper["W"], float), np.random.default_rng(5).standard_normal((3, 3))
    slope = (value(W + 1e-5 * along) - value(W - 1e-5 * along)) / 2e-5
    rtol = 1e-3 if dtype == jnp.float32 else 1e-7
    np.testing.assert_allclose(np.sum(np.asarray(a.grad["W"]) * along), slope, rtol=rtol)


def test_second_derivatives_against_differences() -> None:
    problem, h, w, _, _ = linear_map()
    curved = bl.Problem(
        outer=problem.outer,
        fixed_point=lambda w, h, _: 0.3 * jnp.sin(w[::-1]) + jnp.sum(h**2) * w / 20,
    )
    estimator = bl.Implicit(bl.Picard(), 60, linear=GMRES)

    def slope(h: jax.Array) -> jax.Array:
        return bl.hypergradient(curved, estimator, h, w + 1, ONE, KEY, evidence="off")[0].grad

    h = jnp.asarray([0.5, -0.3, 0.2])
    by_hand = np.stack(
        [(slope(h + 1e-5 * e) - slope(h - 1e-5 * e)) / 2e-5 for e in np.eye(3)], axis=1
    )
    np.testing.assert_allclose(jax.jacfwd(slope)(h), by_hand, rtol=1e-5, atol=1e-8)


def test_seeds_side_by_side_and_a_run_of_tune() -> None:
    problem, h, w, _, _ = linear_map()
    estimator = ESTIMATORS["Anderson, implicit"]
    starts = jnp.stack([w, w + 1])
    each = jax.vmap(lambda w: bl.hypergradient(problem, estimator, h, w, ONE, KEY)[0].grad)(starts)
    np.testing.assert_allclose(each[0], each[1], rtol=1e-8)
    result = bl.tune(problem, estimator, optax.adam(0.1), h, w, ONE, steps=100, key=KEY)
    assert result.history["value"][-1] < 0.2 * result.history["value"][0]
    assert not result.diverged


@pytest.mark.parametrize("evidence", ["off", "auto", "full"])
@pytest.mark.parametrize(
    "estimator",
    [bl.Reverse(bl.Picard(), 40), bl.Forward(bl.Picard(), 40)],
    ids=["reverse", "forward"],
)
def test_unknowns_that_belong_to_rows_are_never_sampled(estimator: Any, evidence: str) -> None:
    """A state for each of 6000 rows, ``z = tanh(h) z + x``: more rows than evidence looks at."""
    x, h = jnp.linspace(-1, 2, 6000), jnp.array(0.3)
    layer = bl.Problem(
        outer=lambda z, h, _: jnp.mean(z**2) / 2, fixed_point=lambda z, h, x: jnp.tanh(h) * z + x
    )
    data = bl.Data(inner=x, outer=x)
    at = h, jnp.zeros(6000), data, KEY
    estimate, _ = bl.hypergradient(layer, estimator, *at, evidence=evidence)
    rate = np.tanh(0.3)
    exact = np.mean(np.asarray(x) ** 2) / (1 - rate) ** 3 * (1 - rate**2)
    np.testing.assert_allclose(estimate.grad, exact, rtol=1e-10)
    assert estimate.evidence.inner_residual < 1e-10
