"""The tail average over shuffled epochs is biased: its mean, by listing all orders."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise import epochs

pytestmark = pytest.mark.usefixtures("x64")


def ridge(n: int, seed: int, heavy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Iterates and their derivative along one of two penalties, ``z = (w, dw / dh)``."""
    rng = np.random.default_rng(seed)
    X = rng.standard_t(3, (n, 2)) if heavy else rng.normal(size=(n, 2))
    y, penalty = rng.normal(size=n), np.diag([0.3, 0.1])
    H = X[:, :, None] * X[:, None, :] + penalty
    C = np.zeros((n, 4, 4))
    C[:, :2, :2] = C[:, 2:, 2:] = H
    C[:, 2, 0] = penalty[0, 0]  # the mixed derivative, in w
    return C, np.concatenate([X * y[:, None], np.zeros((n, 2))], 1)


def mean_of_tail(C: np.ndarray, q: np.ndarray, batch: int, rate: float) -> np.ndarray:
    """The stationary mean over all positions of an epoch: an affine map for each of n! orders."""
    n, s = q.shape
    batches, orders = n // batch, math.factorial(n)
    end, end_shift = np.zeros((s, s)), np.zeros(s)
    every, every_shift = np.zeros((s, s)), np.zeros(s)
    for order in itertools.permutations(range(n)):
        map_, shift = np.eye(s), np.zeros(s)
        for rows in np.reshape(order, (batches, batch)):
            H = C[rows].mean(0)
            map_, shift = map_ - rate * H @ map_, shift - rate * (H @ shift - q[rows].mean(0))
            every, every_shift = every + map_, every_shift + shift
        end, end_shift = end + map_, end_shift + shift
    begin = np.linalg.solve(np.eye(s) - end / orders, end_shift / orders)
    return (every @ begin + every_shift) / (orders * batches)


@pytest.mark.parametrize(
    ("n", "batch", "heavy"),
    [(4, 1, False), (4, 2, True), (5, 1, True), (6, 1, False), (6, 2, True), (6, 3, False)],
)
def test_shift_is_that_of_all_orders_to_first_order(n: int, batch: int, heavy: bool) -> None:
    C, q = ridge(n, seed=10 * n + batch, heavy=heavy)
    at = np.linalg.solve(C.mean(0), q.mean(0))
    wrong = []
    for rate in np.array([0.02, 0.01]) / np.linalg.eigvalsh(C[:, :2, :2])[:, -1].max():
        exact = mean_of_tail(C, q, batch, rate) - at
        found = epochs.tail_average_shift(C, q, rate, batch)
        wrong.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert wrong[0] < 0.05
    assert wrong[1] == pytest.approx(wrong[0] / 2, rel=0.05)  # what is left out is of next order


def test_examples_of_equal_curvature_have_no_shift() -> None:
    C = np.broadcast_to(np.diag([1.0, 2.0]), (6, 2, 2))
    q = np.random.default_rng(0).normal(size=(6, 2))
    assert not jnp.any(epochs.tail_average_shift(C, q, 0.1, 2))


@pytest.mark.parametrize(
    ("n", "batch", "match"),
    [(6, 4, "whole batches"), (6, 6, "whole batches"), (6, 0, "at least 1")],
)
def test_refusals(n: int, batch: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        epochs.tail_average_shift(*ridge(n, 0, False), 0.1, batch)
