"""Every linear solver against a dense NumPy solve: trees, both precisions, warm starts, vmap."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.linear import Operator, relative_residual
from tests.compiling import compilations

N = 13

# Solvers by what they can solve; `tol` is the relative residual that each must reach.
DEFINITE = {
    "CG": lambda tol: bl.CG(tol=tol),
    "MINRES": lambda tol: bl.MINRES(tol=tol),
    "GMRES": lambda tol: bl.GMRES(tol=tol),
    "GMRES restarted": lambda tol: bl.GMRES(tol=tol, restart=5),
    "BiCGSTAB": lambda tol: bl.BiCGSTAB(tol=tol),
    "Dense": lambda tol: bl.Dense(),
    "Neumann": lambda tol: bl.Neumann(terms=400),
    "FixedPoint": lambda tol: bl.FixedPoint(tol=tol),
    "FixedPoint given": lambda tol: bl.FixedPoint(tol=tol, step_size=0.2),
}
INDEFINITE = {
    "MINRES": lambda tol: bl.MINRES(tol=tol),
    "GMRES": lambda tol: bl.GMRES(tol=tol),
    "BiCGSTAB": lambda tol: bl.BiCGSTAB(tol=tol),
}
GENERAL = {
    "GMRES": lambda tol: bl.GMRES(tol=tol),
    "GMRES restarted": lambda tol: bl.GMRES(tol=tol, restart=6),
    "BiCGSTAB": lambda tol: bl.BiCGSTAB(tol=tol),
    "FixedPoint": lambda tol: bl.FixedPoint(tol=tol, step_size=0.2),
}


def rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((N, N)))[0]


def matrix(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    Q, spectrum = rotation(rng), np.linspace(0.5, 5.0, N)
    if kind == "indefinite":
        spectrum = spectrum * np.where(np.arange(N) % 3 == 0, -1, 1)
    A = (Q * spectrum) @ Q.T
    if kind == "general":  # positive real part, far from symmetric
        skew = rng.standard_normal((N, N))
        A = A + 0.5 * (skew - skew.T)
    return A


def rich(A: Any, b: Any, damping: Any) -> Operator:
    """An operator on trees like ``b`` that every solver can use."""
    _, unravel = ravel_pytree(b)

    def product(v: Any) -> Any:
        return unravel(A @ ravel_pytree(v)[0])

    def sample(v: Any, key: Any, batch_size: int) -> Any:
        return product(jax.tree.map(lambda x: x * (1 + jax.random.normal(key) / batch_size), v))

    return Operator(product, damping, sample, gauss_newton=lambda: Operator(product, damping))


# Compiled once for each solver's structure and precision, whatever the matrix.
@jax.jit
def run(solver: Any, A: Any, b: Any, x0: Any, key: Any, damping: Any = 0.0) -> tuple[Any, Any]:
    """The solution, and its residual measured again."""
    operator = rich(A, b, damping)
    solution = solver.solve(operator, b, x0, key)
    return solution, relative_residual(operator, b, solution.x)


def tree(seed: int) -> Any:
    """A right side: a matrix, a vector and a scalar."""
    rng = np.random.default_rng(seed + 100)
    shapes = {"W": (2, 3), "v": (6,), "c": ()}
    return {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def zeros(b: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, b)


def flat(b: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(b)[0], float)


def check(solver: Any, kind: str, seed: int, tol: float, accuracy: float) -> None:
    A, b = matrix(kind, seed), tree(seed)
    solution, residual = run(solver, jnp.asarray(A), b, zeros(b), jax.random.key(seed))
    expected = np.linalg.solve(A, flat(b))
    assert np.linalg.norm(flat(solution.x) - expected) / np.linalg.norm(expected) < accuracy
    assert solution.residual < 2 * tol
    np.testing.assert_allclose(solution.residual, residual, rtol=0.1, atol=0.1 * tol)
    same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), solution.x, b)
    assert all(jax.tree.leaves(same))


CASES = [
    pytest.param(kind, make, id=f"{kind}-{name}")
    for kind, table in (("definite", DEFINITE), ("indefinite", INDEFINITE), ("general", GENERAL))
    for name, make in table.items()
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "make"), CASES)
def test_is_the_dense_solution(kind: str, make: Any, seed: int, x64: None) -> None:
    check(make(1e-11), kind, seed, 1e-11, 1e-9)


@pytest.mark.parametrize(("kind", "make"), CASES)
def test_is_the_dense_solution_in_float32(kind: str, make: Any) -> None:
    check(make(1e-5), kind, 0, 1e-5, 2e-4)


@pytest.mark.parametrize("make", DEFINITE.values(), ids=DEFINITE)
def test_nothing_to_solve_is_zero_without_nan(make: Any, x64: None) -> None:
    b = zeros(tree(0))
    for A in (matrix("definite", 0), np.zeros((N, N))):
        if make(1e-8) == bl.Dense() and not A.any():
            continue  # a singular matrix, which Dense refuses
        solution, _ = run(make(1e-8), jnp.asarray(A), b, b, jax.random.key(0))
        assert not np.any(flat(solution.x))
        assert solution.residual == 0


WARM = {name: make for name, make in DEFINITE.items() if name not in ("Dense", "Neumann")}


@pytest.mark.parametrize("make", WARM.values(), ids=WARM)
def test_a_warm_start_at_the_solution_is_left_at_once(make: Any, x64: None) -> None:
    A, b, key = matrix("definite", 0), tree(0), jax.random.key(0)
    _, unravel = ravel_pytree(b)
    x = unravel(jnp.asarray(np.linalg.solve(A, flat(b))))
    cold, _ = run(make(1e-8), jnp.asarray(A), b, zeros(b), key)
    warm, _ = run(make(1e-8), jnp.asarray(A), b, x, key)
    np.testing.assert_array_equal(flat(warm.x), flat(x))
    assert warm.residual < 1e-12
    assert warm.matvecs < cold.matvecs


@pytest.mark.parametrize("make", WARM.values(), ids=WARM)
def test_a_cap_shows_in_the_residual(make: Any, x64: None) -> None:
    A, b = matrix("definite", 0), tree(0)
    solver = dataclasses.replace(make(1e-10), max_steps=2)
    solution, residual = run(solver, jnp.asarray(A), b, zeros(b), jax.random.key(0))
    assert 1e-3 < solution.residual < 1
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-9)


COUNTED = {name: make for name, make in DEFINITE.items() if name != "Dense"}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("make", COUNTED.values(), ids=COUNTED)
def test_counts_the_products_that_it_makes(make: Any, warm: bool, x64: None) -> None:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    A, b = jnp.asarray(matrix("definite", 0)), jnp.asarray(flat(tree(0)))

    def counted(v: Any) -> Any:
        jax.debug.callback(count)
        return A @ v

    solution = make(1e-8).solve(counted, b, b if warm else 0 * b, jax.random.key(0))
    jax.block_until_ready(solution)
    jax.effects_barrier()
    assert calls == int(solution.matvecs)


EVERY = {**DEFINITE, "GaussNewton": lambda tol: bl.GaussNewton(bl.CG(tol=tol))}
EVERY["Nystrom"] = lambda tol: bl.Nystrom(rank=5)
EVERY["Nystrom sketched"] = lambda tol: bl.Nystrom(rank=5, sketch="gaussian")
EVERY["SGDLinear"] = lambda tol: bl.SGDLinear(step_size=tol, steps=7, batch_size=3, average=2)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_vmap_is_the_loop_and_floats_recompile_nothing(make: Any, x64: None) -> None:
    seeds = range(3)
    matrices = [jnp.asarray(matrix("definite", seed)) for seed in seeds]
    sides, keys = [tree(seed) for seed in seeds], [jax.random.key(seed) for seed in seeds]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(matrices, sides, keys, strict=True))

    def one(solver: Any, A: Any, b: Any, key: Any) -> Any:
        return run(solver, A, b, zeros(b), key, 0.1)[0]

    mapped = jax.vmap(functools.partial(one, make(1e-3)))(*stacked)
    looped = [one(make(1e-3), *each) for each in zip(matrices, sides, keys, strict=True)]
    for i, alone in enumerate(looped):
        for a, b in zip(jax.tree.leaves(mapped.x), jax.tree.leaves(alone.x), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mapped.residual[i], alone.residual, rtol=1e-6, atol=1e-14)
    start, solver = zeros(sides[0]), make(1e-2)
    with compilations() as compiled:
        other, _ = run(solver, matrices[0], sides[0], start, keys[0], 0.2)
    assert int(compiled) == 0
    assert not np.array_equal(flat(other.x), flat(looped[0].x))


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_settings_show_and_survive_as_a_pytree(make: Any) -> None:
    solver = make(0.125)
    leaves, treedef = jax.tree.flatten(solver)
    assert jax.tree.unflatten(treedef, leaves) == solver == make(0.125)
    assert repr(solver).startswith(type(solver).__name__)
    assert hash(treedef) is not None
