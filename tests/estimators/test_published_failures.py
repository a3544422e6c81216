"""Settings in which published hypergradient code returns something wrong, mostly without a word.

An isotropic Hessian (a CG that stops too early answers 0), a small well-conditioned one (a CG
without exact termination), and condition 1e6 in 50 dimensions (normal equations: 42 % off);
implicit derivatives that have no forward mode, one number for four penalties.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bilevel as bl
from bilevel.testing import ridge

SEED = st.integers(0, 2**31)


def inner(w: Any, h: Any, batch: Any) -> Any:
    (H,), (b,) = batch
    return w @ H @ w / 2 - jnp.exp(h) * b @ w


PROBLEM = bl.Problem(inner, lambda w, h, batch: jnp.sum(batch[0] * w))


def spd(eigenvalues: Any, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    return (Q * np.asarray(eigenvalues)) @ Q.T


SPECTRA = {
    "isotropic": np.full(6, 0.7),
    "condition 5": np.linspace(1, 5, 6),
    "condition 1e6": np.geomspace(1e-6, 1, 50),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SPECTRA)
def test_implicit_with_cg_is_the_dense_solve(name: str) -> None:
    H, rng = spd(SPECTRA[name], 0), np.random.default_rng(1)
    b, c = rng.standard_normal((2, len(H)))
    data = bl.Data(inner=(H[None], b[None]), outer=c[None])
    estimator = bl.Implicit(bl.GradientDescent(0.1), steps=1, linear=bl.CG(tol=1e-12))
    w = np.linalg.solve(H, b)
    estimate, _ = bl.hypergradient(PROBLEM, estimator, 0.0, w, data, jax.random.key(0))
    # w* = e^h H^{-1} b, so d outer / dh = c . w* at h = 0.
    assert float(estimate.grad) == pytest.approx(c @ w, rel=1e-8)
    assert float(estimate.evidence.linear_residual) < 1e-10


@pytest.mark.usefixtures("x64")
def test_exact_termination_after_as_many_products_as_eigenvalues() -> None:
    b = np.random.default_rng(0).standard_normal(6)
    for distinct in (1, 2, 3):
        eigenvalues = np.repeat(np.linspace(1, 5, distinct), 6 // distinct)
        H = spd(eigenvalues, seed=distinct)
        found = bl.CG(tol=1e-13, max_steps=distinct).solve(lambda v, H=H: H @ v, b, jnp.zeros(6))
        np.testing.assert_allclose(found.x, np.linalg.solve(H, b), rtol=1e-11)


def test_what_is_not_solved_is_reported() -> None:
    H, b = spd(SPECTRA["condition 1e6"], 0), np.ones(50)
    data = bl.Data(inner=(H[None], b[None]), outer=np.ones((1, 50)))
    estimator = bl.Implicit(bl.GradientDescent(0.1), steps=1, linear=bl.CG(max_steps=5))
    estimate, _ = bl.hypergradient(PROBLEM, estimator, 0.0, np.zeros(50), data, jax.random.key(0))
    assert float(estimate.evidence.linear_residual) > 0.1


@jax.jit
def cg(H: Any, b: Any, x0: Any) -> Any:
    return bl.CG(tol=1e-8).solve(lambda v: H @ v, b, x0)


@settings(deadline=None, max_examples=25)
@given(d=st.sampled_from([1, 2, 7]), seed=SEED, decades=st.floats(0, 4), warm=st.booleans())
def test_cg_solves_and_reports_its_true_residual(
    d: int, seed: int, decades: float, warm: bool
) -> None:
    rng = np.random.default_rng(seed)
    H, b = spd(np.logspace(-decades, 0, d), seed), rng.standard_normal(d)
    x0 = rng.standard_normal(d) if warm else np.zeros(d)
    with jax.enable_x64(True):
        found = cg(H, b, x0)
        x, residual = np.asarray(found.x), float(found.residual)
    true = np.linalg.norm(H @ x - b) / np.linalg.norm(b)
    assert true <= 1e-7
    # Two ways to round the same small difference: eps times the condition number, 1e4.
    assert residual == pytest.approx(true, rel=1e-3, abs=1e-11)
    np.testing.assert_allclose(x, np.linalg.solve(H, b), atol=1e-6 * 10**decades)


@pytest.mark.parametrize("x0", [0.0, 1.0])
def test_a_zero_right_hand_side_has_the_solution_zero(x0: float) -> None:
    H = spd([1.0, 2.0, 3.0], 0)
    found = bl.CG().solve(lambda v: jnp.asarray(H) @ v, jnp.zeros(3), jnp.full(3, x0))
    np.testing.assert_allclose(found.x, 0, atol=1e-6)
    assert np.isfinite(found.residual)


def test_negative_curvature_stops_and_shows() -> None:
    H = jnp.diag(jnp.array([1.0, -1.0]))
    found = bl.CG().solve(lambda v: H @ v, jnp.array([1.0, 2.0]), jnp.zeros(2))
    assert np.isfinite(found.x).all()
    assert float(found.residual) > 0.5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["implicit", "solve"])
def test_forward_mode_goes_through(kind: str) -> None:
    """`jax.jacfwd` of the solution, and of the hypergradient: the Hessian of the value."""
    case, key = ridge(seed=0), jax.random.key(0)
    solver = bl.GradientDescent(case.step_size)
    estimator = bl.Implicit(solver, case.steps, linear=bl.CG(tol=1e-14))

    def slope(hyper: Any) -> Any:
        arguments = (case.params, case.data, key)
        if kind == "implicit":
            return bl.hypergradient(case.problem, estimator, hyper, *arguments)[0].grad

        def value(hyper: Any) -> Any:
            w = bl.solve(case.problem, solver, hyper, *arguments, steps=case.steps)
            return case.problem.outer(w, hyper, case.data.outer)

        return jax.grad(value)(hyper)

    hessian = jax.jit(jax.jacfwd(slope))(jnp.asarray(case.hyper))
    assert case.exact is not None
    for i, along in enumerate(np.eye(4)):
        up, down = (case.exact(case.hyper + sign * 1e-4 * along)[1] for sign in (1, -1))
        np.testing.assert_allclose(hessian[i], (up - down) / 2e-4, rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_each_penalty_has_a_slope_of_its_own() -> None:
    case = ridge(seed=0)
    estimator = bl.Implicit(bl.GradientDescent(case.step_size), case.steps, bl.CG(tol=1e-12))
    arguments = (case.hyper, case.params, case.data, jax.random.key(0))
    found = bl.hypergradient(case.problem, estimator, *arguments)[0].grad
    assert case.exact is not None
    slopes = case.exact(case.hyper)[1]
    assert np.abs(np.subtract.outer(slopes, slopes)[~np.eye(4, dtype=bool)]).min() > 1e-3
    np.testing.assert_allclose(found, slopes, rtol=1e-9)
