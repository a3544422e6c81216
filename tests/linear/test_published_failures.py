"""Systems on which published implementations were measured wrong, most of them silently.

CG that returns the previous iterate at convergence gives 0 on an isotropic Hessian; CG with the old
residual in its direction update stalls at 1e-2 or grows; CG on the normal equations squares the
condition number and is 42 % wrong at condition 1e6; a Neumann series is 100 % wrong there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.marks import quick_cases

pytestmark = pytest.mark.usefixtures("x64")

EXACT = {"CG": bl.CG, "MINRES": bl.MINRES, "GMRES": bl.GMRES}


def spd(n: int, condition: float, seed: int) -> np.ndarray:
    """Eigenvalues spaced evenly in logarithm between 1 / condition and 1."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (Q * np.geomspace(1 / condition, 1, n)) @ Q.T


def error(solver: Any, H: np.ndarray, b: np.ndarray) -> tuple[float, Any]:
    dense, key = jnp.asarray(H), jax.random.key(0)
    solution = solver.solve(lambda v: dense @ v, jnp.asarray(b), jnp.zeros(b.size), key)
    exact = np.linalg.solve(H, b)
    return float(np.linalg.norm(solution.x - exact) / np.linalg.norm(exact)), solution


@pytest.mark.parametrize("solver", [make(tol=1e-10) for make in EXACT.values()], ids=EXACT)
def test_an_isotropic_hessian_takes_one_step(solver: Any) -> None:
    wrong, solution = error(solver, 0.7 * np.eye(6), np.arange(1.0, 7.0))
    assert wrong < 1e-15
    assert solution.matvecs <= 3  # one step, and the residual


@quick_cases(1, "seed", [0, 1, 2])
@pytest.mark.parametrize("name", EXACT)
def test_six_dimensions_take_six_steps_and_more_do_no_harm(name: str, seed: int) -> None:
    H, b = spd(6, 5.0, seed), np.random.default_rng(seed).standard_normal(6)
    for steps in (6, 7, 10, 50):
        wrong, _ = error(EXACT[name](tol=1e-15, max_steps=steps), H, b)
        assert wrong < 1e-14
    wrong, solution = error(EXACT[name](tol=1e-15, max_steps=3), H, b)
    assert wrong > 1e-4
    assert solution.residual > 1e-4


def test_a_condition_of_a_million_in_fifty_dimensions() -> None:
    H, b = spd(50, 1e6, 0), np.random.default_rng(0).standard_normal(50)
    for solver in (bl.CG(tol=1e-13, max_steps=2000), bl.Dense()):
        wrong, solution = error(solver, H, b)
        assert wrong < 1e-6
        assert solution.residual < 1e-9


def test_a_neumann_series_that_cannot_be_right_says_so() -> None:
    H, b = spd(6, 1e6, 0), np.ones(6)
    wrong, solution = error(bl.Neumann(terms=100), H, b)
    assert wrong > 0.99
    assert solution.residual > 0.05
    wrong, solution = error(bl.CG(tol=1e-14), H, b)
    assert wrong < 1e-8
    assert solution.residual < 1e-10


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 10.0])
def test_the_scale_of_the_system_does_not_matter_to_cg(scale: float) -> None:
    H, b = scale * spd(10, 30.0, 1), np.random.default_rng(1).standard_normal(10)
    wrong, _ = error(bl.CG(tol=1e-13), H, b)
    assert wrong < 1e-11


@pytest.mark.parametrize("kappa", [10.0, 100.0])
@pytest.mark.parametrize("steps", [5, 15, 40])
def test_cg_is_within_its_bound_and_needs_the_root_of_the_condition(
    kappa: float, steps: int
) -> None:
    """``|e_k|_H <= 2 rho^k |e_0|_H``, ``rho = (sqrt(kappa) - 1) / (sqrt(kappa) + 1)``."""
    H = spd(60, kappa, 2)
    b = np.random.default_rng(2).standard_normal(60)
    _, solution = error(bl.CG(tol=1e-15, max_steps=steps), H, b)
    exact = np.linalg.solve(H, b)
    left = np.asarray(solution.x) - exact
    rho = (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1)
    assert np.sqrt(left @ H @ left) <= 2 * rho**steps * np.sqrt(exact @ H @ exact) + 1e-13


@pytest.mark.parametrize("terms", [1, 10, 37])
def test_a_neumann_series_leaves_exactly_its_next_power(terms: int) -> None:
    """``b - H x = (I - s H)^terms b``."""
    H, b, s = spd(9, 20.0, 3), np.random.default_rng(3).standard_normal(9), 0.9
    _, solution = error(bl.Neumann(terms, step_size=s), H, b)
    power = np.linalg.matrix_power(np.eye(9) - s * H, terms) @ b
    np.testing.assert_allclose(b - H @ solution.x, power, rtol=0, atol=1e-13)
    expected = np.linalg.norm(power) / np.linalg.norm(b)
    np.testing.assert_allclose(solution.residual, expected, rtol=1e-10)
    _, iterated = error(bl.FixedPoint(tol=1e-15, max_steps=terms, step_size=s), H, b)
    np.testing.assert_allclose(iterated.x, solution.x, rtol=0, atol=1e-13)


def test_a_step_above_the_stability_limit_ends_and_shows() -> None:
    H, b = spd(6, 5.0, 0), np.ones(6)
    _, solution = error(bl.FixedPoint(step_size=3.0, max_steps=100_000), H, b)
    assert solution.matvecs < 200
    assert solution.residual > 10
    _, solution = error(bl.Neumann(terms=50, step_size=3.0), H, b)
    assert solution.residual > 10


def test_cg_stops_at_negative_curvature_and_minres_does_not() -> None:
    H, b = np.diag([2.0, 1.0, -1.0]), np.array([0.1, 0.1, 1.0])
    _, solution = error(bl.CG(tol=1e-12), H, b)
    assert solution.residual > 0.1
    wrong, solution = error(bl.MINRES(tol=1e-12), H, b)
    assert wrong < 1e-12


def test_minres_leaves_the_least_squares_residual_of_a_singular_system() -> None:
    H, b = np.diag([2.0, 1.0, 0.0]), jnp.array([2.0, 3.0, 4.0])
    solution = bl.MINRES(tol=1e-12).solve(lambda v: H @ v, b, jnp.zeros(3))
    np.testing.assert_allclose(solution.x[:2], [1.0, 3.0], rtol=1e-12)
    np.testing.assert_allclose(solution.residual, 4 / np.linalg.norm(b), rtol=1e-12)
