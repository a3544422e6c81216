"""Distillation against scikit-learn's Ridge: the inner fit, its scores, the hypergradient."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import bilevel as bl
from tasks.datasets.images import images
from tasks.distillation import distillation
from tests.compiling import compilations
from tests.marks import quick_cases
from tests.tasks.experiment import run_experiment

PENALTY = 1e-2


def rows() -> tuple[np.ndarray, ...]:
    """Standardised training rows, targets, standardised test rows, test labels."""
    parts = images("digits", train=200, seed=0)
    X = parts.train[0].astype(float)
    centre = X.mean(0)
    unit = np.sqrt(np.mean(np.sum((X - centre) ** 2, axis=1)))
    T = np.eye(10)[parts.train[1]] - 0.1
    return (X - centre) / unit, T, (parts.test[0] - centre) / unit, parts.test[1]


def ridge(S: np.ndarray, T: np.ndarray) -> Ridge:
    return Ridge(alpha=PENALTY, fit_intercept=False, solver="cholesky").fit(S, T)


@quick_cases(1, "labels", [False, True])
def test_value_and_hypergradient_are_those_of_scikit_learn(labels: bool, x64) -> None:
    task = distillation(train=200, labels=labels)
    X, T, _, _ = rows()
    fixed = np.asarray(task.data.inner[1])

    def value(hyper: dict) -> float:
        model = ridge(np.asarray(hyper["images"]), np.asarray(hyper.get("labels", fixed)))
        return float(np.mean(np.sum((model.predict(X) - T) ** 2, axis=1)) / 2)

    rng = np.random.RandomState(1)
    way = {name: rng.normal(size=leaf.shape) for name, leaf in task.hyper.items()}
    ends = [{n: leaf + s * way[n] for n, leaf in task.hyper.items()} for s in (1e-6, -1e-6)]
    slope = (value(ends[0]) - value(ends[1])) / 2e-6
    estimate, _ = bl.hypergradient(
        task.problem, bl.ClosedForm(), task.hyper, task.params, task.data, jax.random.key(0)
    )
    for found, grad in ((estimate.value, estimate.grad), task.exact(task.hyper)):
        assert found == pytest.approx(value(task.hyper), rel=1e-6)
        along = sum(np.sum(np.asarray(grad[name]) * way[name]) for name in way)
        assert along == pytest.approx(slope, rel=1e-5)


def test_metrics_and_baselines_are_those_of_scikit_learn() -> None:
    task = distillation(train=200)
    X, T, tested, y = rows()

    def scores(model: Ridge) -> dict:
        loss = np.mean(np.sum((model.predict(X) - T) ** 2, axis=1)) / 2
        wrong = np.mean(np.argmax(model.predict(tested), axis=1) != y)
        return {"test_error": pytest.approx(wrong), "train_loss": pytest.approx(loss, rel=1e-4)}

    baselines = task.baselines()
    start = np.asarray(task.hyper["images"], float)
    few = np.asarray(task.data.inner[1], float)
    assert task.metrics(task.hyper, task.params) == scores(ridge(start, few))
    assert baselines["all 200 training rows"] == scores(ridge(X, T))
    means = np.stack([X[T[:, c] > 0].mean(0) for c in range(10)])
    assert baselines["class means"] == scores(ridge(means, few))
    drawn = [row["train_loss"] for name, row in baselines.items() if name.startswith("real")]
    assert drawn[1] <= drawn[0]


def test_equal_problems_share_their_compilation() -> None:
    a, b = (distillation(train=200, seed=seed) for seed in (0, 1))
    assert a.problem == b.problem
    assert a.exact is not None
    assert b.exact is not None
    a.exact(a.hyper)
    with compilations() as count:
        b.exact(b.hyper)
        assert int(count) == 0


def test_a_batch_of_synthetic_rows_is_unbiased(x64) -> None:
    task = distillation(train=200)
    A = jnp.asarray(np.random.RandomState(0).normal(size=task.params.shape))
    single = jax.tree.map(lambda leaf: leaf[:, None], task.data.inner)
    each = jax.vmap(lambda batch: task.problem.inner(A, task.hyper, batch))(single)
    np.testing.assert_allclose(each.mean(), task.problem.inner(A, task.hyper, task.data.inner))


def test_too_few_rows_of_a_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"per_class=30: one class has only \d+ training rows"):
        distillation(train=100, per_class=30)


@pytest.mark.slow
def test_distilled_mnist(shared_data: Path) -> None:
    """Ten images of 14 x 14 for 5000: accuracy and loss in 400 evaluations."""
    metrics = run_experiment("distillation_paper", "seed=5").metrics
    assert 1 - metrics["test_error"] >= 0.852
    assert metrics["train_loss"] <= 0.1965
