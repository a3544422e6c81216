"""Shuffled epochs: mean and covariances of iterates and of averages, by listing all orders."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.noise import Affine, epochs, rules, shuffled

pytestmark = pytest.mark.usefixtures("x64")


def ridge(n: int, seed: int, heavy: bool = False) -> Affine:
    """Iterates and their derivative along one of two penalties, ``z = (w, dw / dh)``."""
    rng = np.random.default_rng(seed)
    X = rng.standard_t(3, (n, 2)) if heavy else rng.normal(size=(n, 2))
    y, penalty = rng.normal(size=n), np.diag([0.3, 0.1])
    H = X[:, :, None] * X[:, None, :] + penalty
    C = np.zeros((n, 4, 4))
    C[:, :2, :2] = C[:, 2:, 2:] = H
    C[:, 2, 0] = penalty[0, 0]  # the mixed derivative, in w
    q = np.concatenate([X * y[:, None], np.zeros((n, 2))], 1)
    return Affine(jnp.asarray(C), jnp.asarray(q), 1.0)


def maps_of_orders(process: Affine, rule: rules.Rule, batch: int) -> np.ndarray:
    """Homogeneous maps from the begin of an epoch to each of its steps, for every order."""
    each = np.asarray(process.maps(rule))
    orders = itertools.permutations(range(len(each)))
    found = []
    for order in orders:
        now, rows = np.eye(each.shape[1]), np.reshape(order, (-1, batch))
        found.append([now := each[some].mean(0) @ now for some in rows])
    return np.array(found)


def stationary(maps: np.ndarray) -> np.ndarray:
    """``E [z; 1] [z; 1]^T`` at the ends of epochs."""
    s = maps.shape[-1]
    pairs = np.einsum("oab,ocd->acbd", maps[:, -1], maps[:, -1]).reshape(s * s, s * s) / len(maps)
    values, vectors = np.linalg.eig(pairs)
    found = np.real(vectors[:, np.argmax(np.abs(values))]).reshape(s, s)  # the eigenvalue 1
    return found / found[-1, -1]


def mean_of_tail(process: Affine, rule: Any, batch: int) -> np.ndarray:
    """The stationary mean over all positions of an epoch."""
    maps = maps_of_orders(process, rule, batch)
    end = maps[:, -1].mean(0)
    begin = np.linalg.solve(np.eye(len(end) - 1) - end[:-1, :-1], end[:-1, -1])
    return (maps.mean((0, 1)) @ np.append(begin, 1.0))[: process.offsets.shape[1]]


CASES = [(4, 1, False), (4, 2, True), (5, 1, True), (6, 1, False), (6, 2, True), (6, 3, False)]


@pytest.mark.parametrize("momentum", [None, 0.6])
@pytest.mark.parametrize(("n", "batch", "heavy"), CASES)
def test_shift_is_that_of_all_orders_to_first_order(
    n: int, batch: int, heavy: bool, momentum: float | None
) -> None:
    process = ridge(n, seed=10 * n + batch, heavy=heavy)
    at, wrong = process.fixed_point(), []
    slow = 1.0 if momentum is None else 0.1
    for rate in (
        slow * np.array([0.02, 0.01]) / np.linalg.eigvalsh(process.matrices[:, :2, :2])[:, -1].max()
    ):
        rule = rules.sgd(rate, momentum)
        exact = mean_of_tail(process, rule, batch) - at
        found = shuffled.tail_average_shift(process, rule, batch)
        wrong.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert wrong[0] < 0.05
    assert wrong[1] == pytest.approx(wrong[0] / 2, rel=0.05)  # what is left out is of next order


@pytest.mark.parametrize(("batch", "momentum"), [(1, None), (2, 0.5), (3, None)])
def test_covariances_of_additive_noise_are_those_of_all_orders(
    batch: int, momentum: float | None
) -> None:
    process = ridge(6, seed=3)
    same = jnp.broadcast_to(process.matrices.mean(0), process.matrices.shape)
    process, rule = Affine(same, process.offsets, 1.0), rules.sgd(0.2, momentum)
    maps, d = maps_of_orders(process, rule, batch), 4
    begin, (orders, batches) = stationary(maps), maps.shape[:2]
    every = np.einsum("okab,bc,okdc->kad", maps, begin, maps) / orders
    mean = begin[:d, -1]
    found = shuffled.epoch_moments(process, rule, batch, window=batches)
    second = every.mean(0)[:d, :d] - np.outer(mean, mean)
    np.testing.assert_allclose(found.second, second, rtol=1e-8, atol=1e-12)
    whole = maps.mean(1)
    average = np.einsum("oab,bc,odc->ad", whole, begin, whole)[:d, :d] / orders
    np.testing.assert_allclose(found.average, average - np.outer(mean, mean), atol=1e-12)
    assert not jnp.any(jnp.abs(found.shift) > 1e-14)  # equal curvatures: no shift


def test_covariance_is_the_closed_form_in_flat_directions_too() -> None:
    K, q = np.diag([1e-3, 0.5]), np.random.default_rng(0).normal(size=(40, 2))
    q -= q.mean(0)
    process = Affine(jnp.broadcast_to(jnp.asarray(K), (40, 2, 2)), jnp.asarray(q), 1.0)
    found = shuffled.epoch_moments(process, rules.sgd(0.1), 4, window=10)
    noise = q.T @ q / 40 * (40 - 4) / (4 * 39)
    np.testing.assert_allclose(found.second, epochs.covariance(K, noise, 0.1, 10), rtol=1e-7)


@pytest.mark.parametrize(
    ("batch", "match"), [(4, "divides their number"), (6, "whole batches"), (0, "at least 1")]
)
def test_refuses_batches_that_are_no_epoch(batch: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        shuffled.tail_average_shift(ridge(6, 0), rules.sgd(0.1), batch)
    with pytest.raises(ValueError, match=match):
        shuffled.epoch_moments(ridge(6, 0), rules.sgd(0.1), batch, window=6)


def test_refuses_part_of_an_epoch() -> None:
    with pytest.raises(ValueError, match=r"window=7 is no number of whole epochs.* Take 6"):
        shuffled.epoch_moments(ridge(6, 0), rules.sgd(0.1), 2, window=7)
