"""Cleaning by a convolutional network: by hand, by finite differences, streamed and resumed."""

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import bilevel as bl
from experiments.common.errors import BadInputError
from experiments.runs.session import perform
from tasks.networks.cleaning import cleaning_network
from tasks.parts.convolutional import Convolutional
from tests.tasks.experiment import job_of, run_experiment

SMALL: dict[str, Any] = {"train": 150, "validation": 20, "test": 30, "channels": (3,)}


@pytest.mark.extended
def test_hypergradient_is_the_central_difference(x64: None) -> None:
    """Of two streamed steps of heavy ball: the statistics and keys of a loop in plain JAX."""
    task = cleaning_network(**SMALL, decay=0.01)
    problem, key, stream = task.problem, jax.random.key(3), task.data.inner
    network = problem.inner.network  # type: ignore[attr-defined]
    (X, y), rows = stream.block(0, 2)
    data = bl.Data(inner=((X, y), rows), outer=task.data.outer)
    solver = bl.SGD(0.1, momentum=0.9, batch_size=64, sampling="stream")
    rng = np.random.default_rng(0)
    hyper, way = rng.normal(size=(2, 150))
    found, _ = bl.hypergradient(
        problem,
        bl.Reverse(solver, 2),
        jnp.asarray(hyper),
        task.params,
        data,
        key,
        model_state=task.model_state,
        evidence="off",
    )

    def loss(params: Any, weights: Any, state: Any, k: int) -> Any:
        part = slice(64 * k, 64 * k + 64)
        both = {"params": params, "batch_stats": state}
        rngs = {"dropout": bl.loss_key(jax.random.fold_in(key, k), "inner")}
        out, new = network.apply(both, X[part], True, rngs=rngs, mutable=["batch_stats"])
        likely = jnp.sum(jax.nn.log_softmax(out) * np.eye(10)[y[part]], axis=1)
        decay = 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jnp.mean(-weights[rows[part]] * likely) + decay, new["batch_stats"]

    slope = jax.jit(jax.grad(loss, has_aux=True), static_argnums=3)

    def value(hyper: np.ndarray) -> float:
        params, state = task.params, task.model_state
        velocity = jax.tree.map(jnp.zeros_like, params)
        for k in range(2):
            moves, state = slope(params, 1 / (1 + np.exp(-hyper)), state, k)
            velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, moves)
            params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
        held, labels = task.data.outer
        out = network.apply({"params": params, "batch_stats": state}, held, False)
        return float(-jnp.mean(jax.nn.log_softmax(out)[np.arange(20), labels]))

    assert found.value == pytest.approx(value(hyper), rel=1e-12)
    slope_by_hand = (value(hyper + 1e-4 * way) - value(hyper - 1e-4 * way)) / 2e-4
    assert np.asarray(found.grad) @ way == pytest.approx(slope_by_hand, rel=1e-6)
    assert set(np.flatnonzero(found.grad)) == set(rows.tolist())


def test_network_is_a_convolution_and_batch_norm_by_hand(x64: None) -> None:
    """JAX's own convolution, statistics of the minibatch in NumPy, no dropout."""
    network = Convolutional(side=6, classes=3, channels=(4,), dropout=0.0)
    params, state = network.draw_weights(0)
    X = np.random.default_rng(0).normal(size=(5, 36))
    kernel = params["Dense_0"]["kernel"].reshape(3, 3, 1, 4)
    order = ("NHWC", "HWIO", "NHWC")
    images = jnp.asarray(X.reshape(5, 6, 6, 1))
    raw = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((1, 0), (1, 0)), dimension_numbers=order
    )
    h = np.asarray(raw) + np.asarray(params["Dense_0"]["bias"])
    mean, variance = h.mean((0, 1, 2)), h.var((0, 1, 2))
    last = jax.tree.map(np.asarray, params["Dense_1"])

    def finish(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        features = np.maximum((h - mean) / np.sqrt(variance + 1e-5), 0).reshape(5, -1)
        return features @ last["kernel"] + last["bias"]

    both = {"params": params, "batch_stats": state}
    out: Any = network.apply(both, jnp.asarray(X), True, mutable=["batch_stats"])
    np.testing.assert_allclose(out[0], finish(mean, variance), rtol=1e-10)
    after = out[1]["batch_stats"]
    by_hand = finish(0.1 * mean, 0.9 + 0.1 * variance)
    np.testing.assert_allclose(network.score(params, after, jnp.asarray(X)), by_hand, rtol=1e-10)


def test_stream_gives_rows_with_their_numbers_and_wrong_labels() -> None:
    task = cleaning_network(**SMALL)
    judge = task.picture.__self__  # type: ignore[union-attr]
    (X, y), rows = task.data.inner.block(0, 2)
    np.testing.assert_array_equal(X, judge.parts.train[0][rows])
    np.testing.assert_array_equal(y, judge.labels[rows])
    assert np.sum(judge.labels != judge.parts.train[1]) == 75
    assert cleaning_network(**SMALL, seed=1).problem == task.problem  # so that seeds compile once


@pytest.mark.extended
def test_a_run_that_was_stopped_goes_on_in_the_stream_with_its_statistics(tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> dict[str, Any]:
        over = (f"steps={steps}", "baselines=false", "plot=false", "compile_cache=null")
        settings = job_of("cleaning_network_quick", "progress=off", *over).settings
        facts = {"choices": {}, "overrides": []}
        return perform(settings, tmp_path / folder, facts, Console(file=io.StringIO()))

    for folder in "ab":
        (tmp_path / folder).mkdir()
    run("a", 2)
    assert run("a", 4)["value"] == run("b", 4)["value"]


def test_what_only_arrays_can_do_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"starts: cleaning network digits reads a stream"):
        job_of("cleaning_network_quick", "starts=2")


@pytest.mark.extended
def test_training_draws_rows_by_weight() -> None:
    """On 600 rows of which 480 are wrong nobody doubts the order."""
    task = cleaning_network(train=600, validation=60, fraction=0.8, train_steps=200)
    judge = task.picture.__self__  # type: ignore[union-attr]
    oracle = judge.score((~judge.wrong).astype(float))["test_error"]
    noisy = judge.score(np.ones(600), trust=0.0)["test_error"]
    assert oracle < 0.3 < 0.5 < noisy


@pytest.mark.slow
def test_cleaned_network_beats_its_validation_rows_and_softmax(shared_data: Path) -> None:
    found = run_experiment("cleaning_network")
    others = found.job.task.baselines()
    for name in ("validation rows alone", "softmax regression, its own weights"):
        assert found.metrics["test_error"] < others[name]["test_error"] - 0.01, name
