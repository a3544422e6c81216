"""Augmentation against SciPy's interpolation, and its derivative against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import bilevel as bl
from tasks.augmentation import augmentation
from tasks.parts.warp import NUMBERS, warp
from tests.tasks.experiment import run_experiment

SHAPE = (5, 7)


def test_warp_is_interpolation_at_the_moved_grid(x64) -> None:
    rng = np.random.RandomState(0)
    X, z = rng.rand(3, 35), rng.normal(size=(3, NUMBERS))
    sizes = np.array([0.7, 0.3, 0.2, 0.4])
    found = jax.jit(lambda sizes: warp(jnp.asarray(X), sizes, jnp.asarray(z), SHAPE))
    np.testing.assert_allclose(found(jnp.zeros(4)), X, atol=1e-14)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).reshape(2, -1)
    centre = np.array([[2.0], [3.0]])
    for image, numbers, warped in zip(X, z, found(jnp.asarray(sizes)), strict=True):
        angle = sizes[1] * numbers[2]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        slope = np.array([[1, 0], [sizes[3] * numbers[4], 1]])  # rows first: right += slope * down
        at = np.exp(sizes[2] * numbers[3]) * turn @ slope @ (grid - centre)
        at = at + centre + sizes[0] * numbers[:2, None]
        expected = map_coordinates(image.reshape(SHAPE), at, order=1, mode="grid-constant")
        np.testing.assert_allclose(warped, expected, atol=1e-12)


@pytest.mark.extended
def test_hypergradient_is_the_central_difference(x64) -> None:
    """Of two steps of training, by all four sizes."""
    task = augmentation(train=10, validation=20, test=10, draws=2, hidden=6)
    solver = bl.SGD(step_size=0.3)
    estimate, _ = jax.jit(
        lambda hyper: bl.hypergradient(
            task.problem,
            bl.Reverse(solver, steps=2),
            hyper,
            task.params,
            task.data,
            jax.random.key(0),
        )
    )(task.hyper)

    @jax.jit
    def value(hyper: jax.Array) -> jax.Array:
        params = bl.solve(
            task.problem, solver, hyper, task.params, task.data, jax.random.key(0), steps=2
        )
        return task.problem.outer(params, hyper, task.data.outer)

    for i, way in enumerate(1e-6 * np.eye(4)):
        slope = (value(task.hyper + way) - value(task.hyper - way)) / 2e-6
        assert estimate.grad[i] == pytest.approx(float(slope), rel=1e-4, abs=1e-9)


def test_rows_come_with_numbers_of_their_own() -> None:
    task = augmentation(train=10, validation=20, test=10, draws=3, hidden=6)
    X, y, z = map(np.asarray, task.data.inner)
    np.testing.assert_array_equal(X[:10], X[20:])
    np.testing.assert_array_equal(y[:10], y[20:])
    assert len(np.unique(z)) == z.size


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws=0 must be at least 1, and start=0.2 positive"):
        augmentation(draws=0)


@pytest.mark.slow
def test_policy_beats_no_policy() -> None:
    """Mean error of three seeds (rows, start, minibatches); log loss in each of them."""
    ours, none = [], []
    for seed in range(3):
        outcome = run_experiment("augmentation", f"seed={seed}")
        ours.append(list(outcome.metrics.values()))
        none.append(list(outcome.job.task.baselines()["no policy"].values()))
    errors, losses = (np.array(ours) - none).T
    assert np.mean(errors) < 0
    assert np.all(losses < 0)
