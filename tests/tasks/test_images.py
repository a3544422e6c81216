"""Which rows the tasks on images draw, and that one program serves all seeds of a task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tasks.augmentation import augmentation
from tasks.base import Task
from tasks.cleaning import cleaning
from tasks.datasets.images import images
from tasks.distillation import distillation
from tasks.imbalance import imbalance
from tasks.weight_decay import weight_decay

X, Y = load_digits(return_X_y=True)


def test_rows_are_those_of_the_permutation() -> None:
    parts = images("digits", train=100, validation=50, seed=3)
    order = np.random.RandomState(3).permutation(len(Y))
    found = [parts.train, parts.validation, parts.test]
    for rows, chosen in zip(found, np.split(order, [100, 150]), strict=True):
        np.testing.assert_array_equal(rows[0], (X[chosen] / 16).astype(np.float32))
        np.testing.assert_array_equal(rows[1], Y[chosen])


def test_classes_are_drawn_in_the_numbers_asked_for() -> None:
    parts = images("digits", train={9: 30, 4: 2}, validation={9: 5, 4: 5}, test=7)
    counts = [np.bincount(y).tolist() for _, y in (parts.train, parts.validation)]
    assert counts == [[30, 2], [5, 5]]
    assert parts.classes == 2
    assert len(parts.test[1]) == 7
    rows = np.concatenate([parts.train[0], parts.validation[0], parts.test[0]])
    labels = np.concatenate([parts.train[1], parts.validation[1], parts.test[1]])
    assert len(np.unique(rows, axis=0)) == len(rows)  # no row twice: digits has no duplicates
    for row, label in zip(rows, labels, strict=True):
        (where,) = np.flatnonzero(np.all(np.isclose(X / 16, row), axis=1))
        assert Y[where] == (9, 4)[label]


def test_pooled_pixels_are_means() -> None:
    small = images("digits", train=5, pool=2).train[0]
    whole = images("digits", train=5).train[0].reshape(5, 8, 8)
    corner = [block[:2, :2].mean() for block in whole]
    np.testing.assert_allclose(small.reshape(5, 4, 4)[:, 0, 0], corner, rtol=1e-6)


def test_mnist_keeps_its_own_test_rows(shared_data: Path) -> None:
    with np.load(shared_data / "mnist.npz") as file:
        first, labels = file["x_test"][:3].reshape(3, -1), file["y_test"][:3]
    parts = images("mnist", train=10, validation=10, test=3)
    np.testing.assert_allclose(parts.test[0] * 255, first, rtol=1e-6)
    np.testing.assert_array_equal(parts.test[1], labels)


def test_bad_sizes_and_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train=2000 rows: scikit-learn digits has 1797 left"):
        images("digits", train=2000)
    with pytest.raises(ValueError, match=r"train=500 rows of class 4: .* has 181 of class 4 left"):
        images("digits", train={4: 500}, validation={4: 1})
    with pytest.raises(ValueError, match=r"test=0 rows"):
        images("digits", train=10, test=0)
    with pytest.raises(ValueError, match=r"rows of 30 numbers are no square images"):
        images("breast_cancer", train=10)
    with pytest.raises(ValueError, match=r"side pool=3 divides"):
        images("digits", train=10, pool=3)
    with pytest.raises(ValueError, match=r"'mnist' is not here: .*Pass root=FOLDER"):
        images("mnist", train=10, root=str(tmp_path))


TASKS: dict[str, Callable[..., Task]] = {
    "cleaning": cleaning,
    "imbalance": imbalance,
    "imbalance_network": lambda seed: imbalance(weights="network", seed=seed),
    "distillation": distillation,
    "decays": weight_decay,
    "decays_network": lambda seed: weight_decay(hidden=5, seed=seed),
    "augmentation": lambda seed: augmentation(draws=2, seed=seed),
}


@pytest.mark.parametrize("make", TASKS.values(), ids=list(TASKS))
def test_seeds_share_one_problem(make: Callable[..., Task]) -> None:
    """Else a study over seeds compiles once per seed and cannot be stacked."""
    first, second = make(seed=0), make(seed=1)
    assert first.problem == second.problem
    assert hash(first.problem) == hash(second.problem)

    def arrays(task: Task) -> list[Any]:
        import jax

        return jax.tree.leaves((task.data.inner, task.data.outer))

    assert [a.shape for a in arrays(first)] == [a.shape for a in arrays(second)]
    assert any(np.any(a != b) for a, b in zip(arrays(first), arrays(second), strict=True))
