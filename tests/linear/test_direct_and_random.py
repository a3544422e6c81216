"""Dense, Nystrom, SGDLinear and GaussNewton: what each promises beyond a small residual."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.linear import Operator, largest_eigenvalue

pytestmark = pytest.mark.usefixtures("x64")

N = 11


def spd(spectrum: np.ndarray, seed: int) -> np.ndarray:
    n = len(spectrum)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (Q * spectrum) @ Q.T


def product(H: np.ndarray) -> Any:
    dense = jnp.asarray(H)
    return lambda v: dense @ v


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_power_iteration_finds_the_largest_modulus(seed: int) -> None:
    H = spd(np.append(np.linspace(-1, 2, N - 1), -4.0), seed)
    found = largest_eigenvalue(product(H), jnp.zeros(N), jax.random.key(seed), 60)
    np.testing.assert_allclose(found, -4.0, rtol=1e-6)


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e5])
@pytest.mark.parametrize("seed", [0, 1])
def test_dense_knows_its_condition_number(condition: float, seed: int) -> None:
    H, b = spd(np.geomspace(1 / condition, 1, N), seed), jnp.ones(N)
    solution = bl.Dense().solve(product(H), b, b, jax.random.key(seed))
    assert solution.matvecs == N + 1
    assert 0.95 * condition < solution.condition < condition * (1 + 1e-6)


@pytest.mark.parametrize("spectrum", [[1.0, 2.0, -1e-3], [1.0, 2.0, 0.0]])
def test_dense_refuses_what_is_not_positive_definite(spectrum: list[float]) -> None:
    H, b, key = spd(np.array(spectrum), 0), jnp.ones(3), jax.random.key(0)
    with pytest.raises(ValueError, match=r"indefinite, or singular.*MINRES"):
        bl.Dense().solve(product(H), b, b, key)
    solution = jax.jit(lambda b: bl.Dense().solve(product(H), b, b, key))(b)
    assert np.all(np.isnan(solution.x))
    assert solution.residual == np.inf


def damped(H: np.ndarray, damping: float) -> Operator:
    return Operator(product(H), damping)


@pytest.mark.parametrize("sketch", ["columns", "gaussian"])
def test_nystrom_is_exact_on_a_matrix_of_its_rank(sketch: str) -> None:
    H = spd(np.append(np.linspace(1, 3, 4), np.zeros(N - 4)), 0)
    b, damping = np.random.default_rng(0).standard_normal(N), 1e-3
    solver = bl.Nystrom(rank=4, sketch=sketch)
    key = jax.random.key(1)
    solution = solver.solve(damped(H, damping), jnp.asarray(b), jnp.zeros(N), key)
    expected = np.linalg.solve(H + damping * np.eye(N), b)
    np.testing.assert_allclose(solution.x, expected, rtol=0, atol=1e-9 * np.linalg.norm(expected))
    assert solution.residual < 1e-10
    assert solution.matvecs == 5


def test_nystrom_follows_the_formula_of_its_paper() -> None:
    """``H_r = H S (S' H S)^-1 S' H`` for columns S that do not exhaust the matrix."""
    H, rank, damping = spd(np.geomspace(1e-2, 1, N), 3), 5, 0.1
    b, key = np.random.default_rng(3).standard_normal(N), jax.random.key(4)
    solution = bl.Nystrom(rank).solve(damped(H, damping), jnp.asarray(b), jnp.zeros(N), key)
    columns = np.asarray(jax.lax.top_k(jax.random.uniform(key, (N,)), rank)[1])
    C, W = H[:, columns], H[np.ix_(columns, columns)]
    model = C @ np.linalg.solve(W, C.T)
    expected = np.linalg.solve(model + damping * np.eye(N), b)
    np.testing.assert_allclose(solution.x, expected, rtol=1e-9)
    left = b - (H + damping * np.eye(N)) @ expected
    np.testing.assert_allclose(
        solution.residual, np.linalg.norm(left) / np.linalg.norm(b), rtol=1e-8
    )


@pytest.mark.extended
def test_the_rank_of_nystrom_buys_accuracy() -> None:
    H = spd(10.0 ** -np.arange(20), 1)
    b, residuals = jnp.ones(20), []
    for rank in (1, 3, 5, 7):
        solver = bl.Nystrom(rank, sketch="gaussian")
        solution = solver.solve(damped(H, 1e-3), b, b, jax.random.key(0))
        residuals.append(float(solution.residual))
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[0] > 1
    assert residuals[-1] < 1e-2


def rows(seed: int) -> tuple[np.ndarray, np.ndarray, Operator]:
    """Least squares on 23 rows, its minibatch products drawn with replacement."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((23, 4))
    H = A.T @ A / 23 + 0.3 * np.eye(4)
    held = jnp.asarray(A)

    def minibatch(v: Any, key: Any, batch_size: int) -> Any:
        batch = held[jax.random.randint(key, (batch_size,), 0, 23)]
        return batch.T @ (batch @ v) / batch_size

    operator = Operator(lambda v: held.T @ (held @ v) / 23, 0.3, minibatch)
    return H, rng.standard_normal(4), operator


def second_moment(H: np.ndarray, A: np.ndarray, b: np.ndarray, s: float, B: int) -> np.ndarray:
    """Stationary ``E[(x - x*) (x - x*)']`` of ``x <- x - s (H_k x - b)``, by a dense solve."""
    n, x = len(b), np.linalg.solve(H, b)
    eye = np.eye(n)

    def noise(P: np.ndarray) -> np.ndarray:
        full = A.T @ A / len(A)
        outer = np.einsum("ki,kj,kl,km,jl->im", A, A, A, A, P, optimize=True) / len(A)
        return (outer - full @ P @ full) / B

    columns = []
    for i in range(n * n):
        P = np.zeros(n * n)
        P[i] = 1
        P = P.reshape(n, n)
        M = eye - s * H
        columns.append((P - M @ P @ M - s**2 * noise(P)).ravel())
    right = s**2 * noise(np.outer(x, x))
    return np.linalg.solve(np.array(columns).T, right.ravel()).reshape(n, n)


@pytest.mark.parametrize("seed", [0])
def test_sgd_fluctuates_as_its_theory_says(seed: int) -> None:
    """Mean and variance of the last iterate over 4000 runs, within four standard errors."""
    H, b, operator = rows(seed)
    A = np.random.default_rng(seed).standard_normal((23, 4))
    s, B, runs = 0.1, 3, 4000
    solver = bl.SGDLinear(step_size=s, steps=150, batch_size=B)
    keys = jax.random.split(jax.random.key(seed), runs)
    x0 = jnp.asarray(np.linalg.solve(H, b))  # at the solution: no transient of the mean
    solve = jax.jit(jax.vmap(lambda key: solver.solve(operator, jnp.asarray(b), x0, key).x))
    deviation = np.asarray(solve(keys)) - np.asarray(x0)
    error = deviation.std(axis=0, ddof=1) / np.sqrt(runs)
    assert np.all(np.abs(deviation.mean(axis=0)) < 4 * error)  # false alarm: 6e-5 each
    squares = np.sum(deviation**2, axis=1)
    expected = np.trace(second_moment(H, A, b, s, B))
    # false alarm: 6e-5
    assert abs(squares.mean() - expected) < 4 * squares.std(ddof=1) / np.sqrt(runs)


@pytest.mark.parametrize("average", [0, 1, 3])
def test_sgd_is_its_recursion_with_its_own_batches(average: int) -> None:
    _, b, operator = rows(1)
    key, schedule = jax.random.key(2), lambda count: 0.2 / (1 + count)
    solver = bl.SGDLinear(schedule, steps=5, batch_size=4, average=average)
    x0 = jnp.arange(4.0)
    solution = solver.solve(operator, jnp.asarray(b), x0, key)
    path = [np.asarray(x0)]
    for k in range(5):
        image = operator.sample(jnp.asarray(path[-1]), jax.random.fold_in(key, k), 4)
        path.append(path[-1] - 0.2 / (1 + k) * (np.asarray(image) - b))
    expected = np.mean(path[-average:], axis=0) if average else path[-1]
    np.testing.assert_allclose(solution.x, expected, rtol=1e-12)
    assert solution.matvecs == 6


def network(params: Any, hyper: Any, batch: Any) -> Any:
    return jnp.tanh(batch[0] @ params["W"]) @ params["v"]


INNER = bl.OutputLoss(
    network,
    lambda z, params, hyper, batch: (
        jnp.mean((z - batch[1]) ** 2) / 2
        + jnp.exp(hyper) * (jnp.sum(params["W"] ** 2) + jnp.sum(params["v"] ** 2)) / 2
    ),
)


def fitted(seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    params = {"W": rng.standard_normal((2, 3)), "v": rng.standard_normal(3)}
    X = rng.standard_normal((17, 2))
    return jax.tree.map(jnp.asarray, params), X, rng.standard_normal(17)


@pytest.mark.extended
def test_the_linearised_loss_has_the_gauss_newton_matrix() -> None:
    """``J' J / n + exp(h) I`` from the dense Jacobian; the gradient is that of the loss itself."""
    params, X, y = fitted(0)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    loss, h = INNER.linearised(params), -1.0

    def at(w: Any) -> Any:
        return loss(unravel(w), h, (X, y))

    J = jax.jacobian(lambda w: network(unravel(w), h, (X, y)))(flat)
    expected = J.T @ J / 17 + np.exp(h) * np.eye(flat.size)
    np.testing.assert_allclose(jax.hessian(at)(flat), expected, rtol=0, atol=1e-12)
    gradient = jax.grad(lambda w: INNER(unravel(w), h, (X, y)))(flat)
    np.testing.assert_allclose(jax.grad(at)(flat), gradient, rtol=0, atol=1e-13)


def test_gauss_newton_solves_with_g_and_reports_the_residual_of_h() -> None:
    G, H = spd(np.linspace(1, 2, N), 0), spd(np.linspace(0.9, 2.2, N), 0)
    b = np.random.default_rng(0).standard_normal(N)
    operator = Operator(product(H), gauss_newton=lambda: Operator(product(G)))
    solver = bl.GaussNewton(bl.CG(tol=1e-12))
    solution = solver.solve(operator, jnp.asarray(b), jnp.zeros(N), jax.random.key(0))
    expected = np.linalg.solve(G, b)
    np.testing.assert_allclose(solution.x, expected, rtol=1e-10)
    left = np.linalg.norm(b - H @ expected) / np.linalg.norm(b)
    np.testing.assert_allclose(solution.residual, left, rtol=1e-9)
    assert left > 1e-2
