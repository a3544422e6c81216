"""Estimators against the closed form, against plain autodiff of a loop written by hand, and XLA."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case, ridge
from tests.draws import rows_by_hand
from tests.marks import quick_cases

KINDS = {
    "Forward": bl.Forward,
    "Reverse": bl.Reverse,
    "Implicit": lambda solver, steps: bl.Implicit(solver, steps, linear=bl.CG(tol=1e-12)),
}


@pytest.fixture(scope="module")
def case() -> Case:
    return ridge(seed=3)


@quick_cases(1, ("x64", "tolerance"), [(True, 1e-8), (False, 1e-4)])
@pytest.mark.parametrize("kind", KINDS)
def test_ridge_is_the_closed_form(case: Case, kind: str, x64: bool, tolerance: float) -> None:
    assert case.exact is not None
    value, grad = case.exact(case.hyper)
    with jax.enable_x64(x64):
        estimate, _ = bl.hypergradient(
            case.problem,
            KINDS[kind](bl.GradientDescent(case.step_size), case.steps),
            case.hyper,
            case.params,
            case.data,
            jax.random.key(0),
        )
    assert float(estimate.value) == pytest.approx(value, rel=tolerance)
    assert np.linalg.norm(np.asarray(estimate.grad) - grad) <= tolerance * np.linalg.norm(grad)


def batches(key: Any, n: int, size: int, steps: int, sampling: str) -> np.ndarray:
    """The documented draws: step k uses fold_in(key, k), an epoch runs on into the next one."""
    drawn, queue = [], []
    for k in range(steps):
        key_k = jax.random.fold_in(key, k)
        if sampling == "iid":
            queue = list(rows_by_hand(key_k, size, n))
        elif len(queue) < size:
            queue += list(jax.random.permutation(key_k, jnp.arange(n, dtype=jnp.int32)))
        drawn.append(queue[:size])
        queue = queue[size:]
    return np.array(drawn)


def sgd_by_hand(
    case: Case, hyper: Any, rows: np.ndarray, step_size: float, momentum: float, nesterov: bool
) -> Any:
    """The outer loss after SGD on ridge regression, its gradient spelt out."""
    X, y = (jnp.asarray(leaf) for leaf in case.data.inner)

    def step(carry: Any, batch: Any) -> Any:
        w, velocity = carry
        error = X[batch] @ w - y[batch]
        gradient = X[batch].T @ error / len(batch) + jnp.exp(hyper) * w
        velocity = momentum * velocity + gradient
        direction = gradient + momentum * velocity if nesterov else velocity
        return (w - step_size * direction, velocity), None

    zeros = jnp.zeros(len(case.params))
    (w, _), _ = jax.lax.scan(step, (zeros, zeros), rows)
    V, t = case.data.outer
    return jnp.mean((V @ w - t) ** 2) / 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", [0])
@quick_cases(
    1,
    ("sampling", "size", "momentum", "nesterov"),
    [
        ("iid", 5, None, False),
        ("iid", 1, 0.7, True),
        ("epoch", 5, 0.7, False),
        ("epoch", 22, None, False),
    ],
)
def test_sgd_is_autodiff_of_the_loop_by_hand(
    case: Case, seed: int, sampling: str, size: int, momentum: float | None, nesterov: bool
) -> None:
    key, steps, step_size = jax.random.key(seed), 17, 0.1
    rows = batches(key, 23, size, steps, sampling)

    def value(hyper: Any) -> Any:
        return sgd_by_hand(case, hyper, rows, step_size, momentum or 0.0, nesterov)

    solver = bl.SGD(step_size, size, momentum, nesterov, sampling)
    for kind, differentiate in ((bl.Forward, jax.jacfwd), (bl.Reverse, jax.grad)):
        expected, gradient = value(case.hyper), differentiate(value)(case.hyper)
        estimate, _ = bl.hypergradient(
            case.problem, kind(solver, steps), case.hyper, case.params, case.data, key
        )
        np.testing.assert_allclose(estimate.value, expected, rtol=1e-12)
        assert np.linalg.norm(estimate.grad - gradient) <= 1e-10 * np.linalg.norm(gradient)


def temp_bytes(estimator: Any, parameters: int) -> int:
    """XLA's own figure for the temporary memory of one hypergradient."""
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((x @ w) ** 2) / 2 + jnp.exp(h) * jnp.sum(w**2) / 2,
        lambda w, h, x: jnp.mean((x @ w - 1) ** 2) / 2,
    )
    x = jax.ShapeDtypeStruct((3, parameters), jnp.float32)
    arguments = (jnp.zeros(()), jnp.zeros(parameters), bl.Data(x, x), jax.random.key(0))

    def one(hyper: Any, params: Any, data: Any, key: Any) -> Any:
        return bl.hypergradient(problem, estimator, hyper, params, data, key)[0]

    return jax.jit(one).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.extended
def test_memory_of_forward_does_not_grow_with_steps() -> None:
    solver = bl.SGD(step_size=0.1, batch_size=2)
    size = {steps: temp_bytes(bl.Forward(solver, steps), 2000) for steps in (10_000, 30_000)}
    # Two row numbers per step are drawn ahead, and held twice; a state would be 8 000 bytes.
    assert size[30_000] - size[10_000] <= 20_000 * 1.05 * (2 * 2 * 4)


@pytest.mark.extended
def test_memory_of_reverse_grows_as_the_square_root_of_steps() -> None:
    solver, parameters = bl.SGD(step_size=0.1, batch_size=2), 2000
    state = 4 * parameters

    def states(steps: int, memory: str) -> float:
        return temp_bytes(bl.Reverse(solver, steps, memory=memory), parameters) / state

    # Params and minibatch make 3 states a step; two levels store 2 sqrt(steps) of them.
    for steps in (100, 4096):
        assert 2 * steps**0.5 < states(steps, "checkpoint") < 3 * 2 * steps**0.5 + 30
    assert states(4096, "full") > 4096
