"""Preconditioned conjugate gradients: the same solution as a dense solve, in fewer products."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.linear import Inverse, InvertsOperator, Operator

pytestmark = pytest.mark.usefixtures("x64")
N = 14
rng = np.random.default_rng(0)
Q = np.linalg.qr(rng.normal(size=(N, N)))[0]
SCALES = 10.0 ** np.linspace(-2, 2, N)
WELL = (Q * np.linspace(1, 3, N)) @ Q.T
HARD = (Q * np.geomspace(1, 300, N)) @ Q.T
SCALED = SCALES[:, None] * WELL * SCALES  # hard for CG, and the diagonal cures it
B = rng.normal(size=N)
KEY = jax.random.key(0)


def solve(linear: bl.CG, operator: Any, b: Any = B, x0: Any = None) -> Any:
    return linear.solve(operator, jnp.asarray(b), jnp.zeros(N) if x0 is None else x0, KEY)


@pytest.mark.parametrize("probes", [4, N])
def test_diagonal_solves_what_is_badly_scaled_in_few_products(probes: int) -> None:
    operator = Operator(lambda v: jnp.asarray(SCALED) @ v)
    exact = np.linalg.solve(SCALED, B)
    start = jnp.asarray(exact) + 1e-3
    for x0 in (None, start):  # from 0, and from the solution of a system like it
        found = solve(bl.CG(tol=1e-12, preconditioner=bl.HessianDiagonal(probes)), operator, x0=x0)
        np.testing.assert_allclose(found.x, exact, rtol=1e-7)
        true = np.linalg.norm(SCALED @ found.x - B) / np.linalg.norm(B)
        assert found.residual == pytest.approx(true, rel=1e-2, abs=1e-13)
        assert found.matvecs < probes + 30
    best = bl.CG(tol=1e-12, max_steps=N + 4, preconditioner=bl.HessianDiagonal(probes))
    plain = replace(best, preconditioner=None)  # as many steps: margins no rounding reaches
    assert solve(best, operator).residual < 1e-5 < 1e-2 < solve(plain, operator).residual


def test_diagonal_of_as_many_probes_as_params_is_exact() -> None:
    operator = Operator(lambda v: jnp.asarray(SCALED) @ v, damping=0.5)
    inverse = bl.HessianDiagonal(N).invert(operator, jnp.zeros(N), KEY)
    expected = np.maximum(np.diag(SCALED) + 0.5, 1e-3 * np.mean(np.diag(SCALED) + 0.5))
    np.testing.assert_allclose(inverse.apply(jnp.ones(N)), 1 / expected)
    assert inverse.matvecs == N


def quadratic(w: Any, h: Any, batch: Any) -> Any:
    return w @ jnp.asarray(HARD) @ w / 2 - jnp.asarray(B) @ w + 0 * jnp.mean(batch)


def test_solver_inverse_invert_what_the_solver_has_seen() -> None:
    """The secant equation of the newest pair; with enough pairs of a quadratic, its inverse."""
    solver, params = bl.LBFGS(memory=2 * N, tol=1e-8), jnp.zeros(N)
    batch = jnp.ones(1)

    def advance(_: int, carry: Any) -> Any:
        return solver.step(quadratic, carry[0], 0.0, batch, KEY, carry[1])

    begun = params, solver.init(params, batch)
    _, state = jax.jit(lambda: jax.lax.fori_loop(0, 2 * N, advance, begun))()
    newest = (state.pairs.seen - 1) % (2 * N)
    s = solver.approximate_inverse(state, state.pairs.y[newest])
    np.testing.assert_allclose(s, state.pairs.s[newest], rtol=1e-9)
    v = jnp.asarray(rng.normal(size=N))
    two = solver.approximate_inverse(state, 2 * v + B)
    one = 2 * solver.approximate_inverse(state, v) + solver.approximate_inverse(
        state, jnp.asarray(B)
    )
    np.testing.assert_allclose(two, one, rtol=1e-9)
    operator = Operator(
        lambda v: jnp.asarray(HARD) @ v, inverse=lambda v: solver.approximate_inverse(state, v)
    )
    with_pairs = solve(bl.CG(tol=1e-10, preconditioner=bl.SolverInverse()), operator, v)
    plain = solve(bl.CG(tol=1e-10), operator, v)
    np.testing.assert_allclose(with_pairs.x, np.linalg.solve(HARD, v), rtol=1e-7)
    assert with_pairs.matvecs < plain.matvecs


def test_squared_gradients_of_adam_are_a_diagonal() -> None:
    """The root of the second moments, by hand, after two steps on known gradients."""
    solver, slopes = bl.Optax(optax.adam(0.1, b2=0.5)), jnp.array([1.0, -3.0, 0.0])
    state = solver.init(jnp.zeros(3), jnp.ones(1))
    params = jnp.zeros(3)
    for _ in range(2):
        params, state = solver.step(
            lambda w, h, x: w @ slopes, params, 0.0, jnp.ones(1), KEY, state
        )
    found = solver.approximate_inverse(state, jnp.ones(3))
    roots = np.sqrt(0.75 * np.array([1.0, 9.0, 9e-6]))  # where none was seen, a floor
    np.testing.assert_allclose(found, 1 / roots, rtol=1e-9)
    plain = bl.Optax(optax.sgd(0.1))
    with pytest.raises(ValueError, match="keeps no squared gradients to divide by"):
        plain.approximate_inverse(plain.init(jnp.zeros(3), jnp.ones(1)), jnp.ones(3))
    parts = {"a": optax.adam(0.1), "b": optax.sgd(0.1)}
    two = optax.chain(optax.scale_by_adam(), optax.scale_by_rms())
    for tx in (two, optax.multi_transform(parts, {"a": "a", "b": "b"})):
        solver, v = bl.Optax(tx), {"a": jnp.ones(2), "b": jnp.ones(2)}
        with pytest.raises(ValueError, match="or not one of every param"):
            solver.approximate_inverse(solver.init(v, jnp.ones(1)), v)


X, Y = rng.normal(size=(40, 3)) * [0.1, 1, 10], rng.normal(size=40)
LEAST = bl.OutputLoss(
    outputs=lambda w, h, batch: batch[0] @ w["w"] + w["b"],
    loss=lambda z, w, h, batch: jnp.mean((z[:, 0] - batch[1]) ** 2) / 2 + h * (w["b"] @ w["b"]) / 2,
)


def test_ekfac_of_one_output_is_the_inverse_block_by_block() -> None:
    """Of least squares with one output the Kronecker factors are the Gram matrix itself."""
    at = {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}
    data, penalty = (jnp.asarray(X), jnp.asarray(Y)), 0.3

    def factors(key: Any, rows: int) -> Any:
        return LEAST.sample_curvature(at, penalty, data, key, rows)

    operator = Operator(lambda v: v, factors=factors)
    inverse = bl.EKFAC(rows=40).invert(operator, at, KEY)
    v = {"w": jnp.asarray(rng.normal(size=(3, 1))), "b": jnp.asarray(rng.normal(size=1))}
    found = inverse.apply(v)
    np.testing.assert_allclose(found["w"], np.linalg.solve(X.T @ X / 40, v["w"]), rtol=1e-9)
    np.testing.assert_allclose(found["b"], v["b"] / (1 + penalty), rtol=1e-9)


def network_problem() -> tuple[bl.Problem, bl.Data, Any]:
    """Return a small network, convex enough at the point where it is looked at."""
    inner = bl.OutputLoss(
        outputs=lambda w, h, batch: jnp.tanh(batch[0] @ w["A"] + w["b"]) @ w["C"],
        loss=lambda z, w, h, batch: (
            jnp.mean(jnp.sum((z - batch[1][:, None]) ** 2, 1)) / 2
            + jnp.exp(h) * sum(jnp.sum(x**2) for x in jax.tree.leaves(w))
        ),
    )
    problem = bl.Problem(inner, lambda w, h, batch: inner(w, -jnp.inf, batch))
    data = bl.Data(inner=(X / [0.1, 1, 10], Y), outer=(X[:9] / [0.1, 1, 10], Y[:9]))
    shapes = {"A": (3, 4), "b": (4,), "C": (4, 2)}
    return problem, data, {k: jnp.asarray(rng.normal(size=s)) / 2 for k, s in shapes.items()}


@pytest.mark.extended
@pytest.mark.parametrize(
    "kind",
    [bl.HessianDiagonal(5), bl.SolverInverse(), bl.EKFAC(30)],
    ids=lambda k: type(k).__name__,
)
def test_hypergradients_do_not_depend_on_the_preconditioner(kind: InvertsOperator) -> None:
    problem, data, params = network_problem()
    at = jnp.asarray(-1.0), params, data, KEY
    estimates = [
        bl.hypergradient(problem, bl.Implicit(bl.LBFGS(tol=1e-9), 200, linear), *at)[0]
        for linear in (bl.Dense(), bl.CG(tol=1e-10, preconditioner=kind))
    ]
    assert estimates[1].grad == pytest.approx(float(estimates[0].grad), rel=1e-6)
    assert estimates[1].evidence.linear_residual < 1e-9
    moved = replace(bl.Implicit(bl.LBFGS(tol=1e-9), 200), linear=bl.CG(preconditioner=kind))
    slope = bl.curvature(problem, moved, *at, along=jnp.asarray(1.0))
    assert jnp.isfinite(slope)


def test_what_the_solver_knows_serves_every_system_of_an_estimate() -> None:
    """Gauss-Newton's, that of a linear model being the Hessian; and those of a first-order bias."""
    problem = bl.Problem(LEAST, lambda w, h, batch: LEAST(w, 0.0, batch))
    data = bl.Data(inner=(X / [0.1, 1, 10], Y), outer=(X[:9] / [0.1, 1, 10], Y[:9]))
    at = jnp.asarray(0.3), {"w": jnp.zeros((3, 1)), "b": jnp.zeros(1)}, data, KEY
    linear = bl.GaussNewton(bl.CG(tol=1e-12, preconditioner=bl.SolverInverse()))
    found, dense = (
        bl.hypergradient(problem, bl.Implicit(bl.LBFGS(tol=1e-8), 50, linear, bias=True), *at)[0]
        for linear in (linear, bl.Dense())
    )
    assert found.grad == pytest.approx(float(dense.grad), rel=1e-9)
    assert found.evidence.linear_residual < 1e-9


class Exact:
    """The dense inverse."""

    def invert(self, operator: Operator, like: Any, key: Any) -> Inverse:
        return Inverse(lambda v: jnp.linalg.solve(jnp.asarray(SCALED), v), 0)


def test_a_preconditioner_of_your_own() -> None:
    assert isinstance(Exact(), InvertsOperator)
    found = solve(bl.CG(tol=1e-10, preconditioner=Exact()), lambda v: jnp.asarray(SCALED) @ v)
    assert found.matvecs <= 3


def test_what_is_missing_is_said() -> None:
    plain = Operator(lambda v: v)
    for kind, message in (
        (
            bl.SolverInverse(),
            "what the inner solver knows of the inverse Hessian, and this one knows nothing",
        ),
        (bl.EKFAC(), "make Problem.inner a bl.OutputLoss"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(bl.CG(preconditioner=kind), plain)
    with pytest.raises(ValueError, match="HessianDiagonal draws random signs: pass a key"):
        bl.CG(preconditioner=bl.HessianDiagonal()).solve(plain, jnp.ones(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="probes"):
        bl.HessianDiagonal(0)
