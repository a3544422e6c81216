"""Models of images and of counts: on rows as they come they are what the run's metrics judged."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

from tasks.augmentation import augmentation
from tasks.cleaning import cleaning
from tasks.datasets.splits import split
from tasks.datasets.tables import load
from tasks.distillation import distillation
from tasks.imbalance import imbalance
from tasks.models import load_model, save_model
from tasks.multinomial import multinomial
from tasks.weight_decay import weight_decay

DIGITS = load_digits(return_X_y=True)


def digits_rows(classes: list[int] | None, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw images and labels of the bundled digits, from a place of the split's permutation on."""
    X, y = map(np.asarray, DIGITS)
    order = np.random.RandomState(0).permutation(len(y))
    order = order if classes is None else order[np.isin(y[order], classes)]
    return X[order[first:]], y[order[first:]]


SMALL: dict[str, Any] = {"train": 100, "validation": 50, "test": None}
IMAGES: dict[str, tuple[Any, int]] = {
    "decays": (lambda: weight_decay("digits", **SMALL), 150),
    "decays of a network": (lambda: weight_decay("digits", hidden=7, **SMALL), 150),
    "cleaning": (lambda: cleaning("digits", refit_steps=20, **SMALL), 150),
    "augmentation": (lambda: augmentation("digits", steps=9, hidden=6, pool=2, **SMALL), 150),
    "distillation": (lambda: distillation("digits", train=100), 100),
}


@pytest.mark.parametrize("name", IMAGES)
def test_model_of_images_gives_the_error_of_the_run(name: str, tmp_path: Path) -> None:
    make, first = IMAGES[name]
    task: Any = make()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w + rng.normal(0, 0.3, w.shape), task.params)
    save_model(task.model(task.hyper, params), tmp_path / "model")
    model: Any = load_model(tmp_path / "model")
    X, y = digits_rows(None, first)
    error = 1 - accuracy_score(y, model.predict(X))
    assert error == pytest.approx(task.metrics(task.hyper, params)["test_error"], abs=1e-7)
    np.testing.assert_array_equal(model.predict(X.reshape(-1, 8, 8)), model.predict(X))
    assert hasattr(model, "predict_proba") == (name != "distillation")


def test_model_of_two_classes_names_them(tmp_path: Path) -> None:
    task: Any = imbalance("digits", hidden=5)
    save_model(task.model(task.hyper, task.params), tmp_path / "model")
    model: Any = load_model(tmp_path / "model")
    assert list(model.classes_) == [9, 4]
    X, y = digits_rows([9, 4], 0)
    rest = np.ones(len(y), bool)
    for label, count in ((9, 98 + 10), (4, 2 + 10)):  # of training and of the balanced set
        rest[np.flatnonzero(y == label)[:count]] = False
    error = 1 - accuracy_score(y[rest], model.predict(X[rest]))
    assert error == pytest.approx(task.metrics(task.hyper, task.params)["test_error"], abs=1e-7)


@pytest.mark.parametrize("weighting", ["scale", "tfidf"])
@pytest.mark.parametrize("width", [None, 12])
def test_multinomial_model_gives_the_metrics_of_the_run(
    weighting: str, width: int | None, tmp_path: Path
) -> None:
    """On rows as they come, sparse, dense or a table; units are those of the training rows."""
    task: Any = multinomial("digits", weighting=weighting, width=width, min_rows=3, rows=400)
    save_model(task.model(task.hyper, task.params), tmp_path / "model")
    model: Any = load_model(tmp_path / "model")
    table = load("digits", kind="classification")
    parts = split(table, validation=0.3, test=0.3, seed=0, rows=400)
    X, y = table.X[parts.test], table.y[parts.test]
    metrics = task.metrics(task.hyper, task.params)
    labels = np.asarray(table.labels)[y]
    assert accuracy_score(labels, model.predict(X)) == pytest.approx(metrics["test_accuracy"])
    shares = model.predict_proba(csr_matrix(X))
    loss = log_loss(labels, shares, labels=model.classes_)
    assert loss == pytest.approx(metrics["test_log_loss"], rel=1e-6)
    np.testing.assert_allclose(model.predict_proba(pd.DataFrame(X)), shares, rtol=1e-9)


def test_wrong_rows_of_images_are_refused(tmp_path: Path) -> None:
    task: Any = weight_decay("digits", **SMALL)
    model = task.model(task.hyper, task.params)
    X, _ = digits_rows(None, 1700)
    with pytest.raises(ValueError, match=r"X is \[97, 63\]: expected \[rows, 64\]"):
        model.predict(X[:, 1:])
    with pytest.raises(ValueError, match="missing or infinite"):
        model.predict(np.where(X > 15, np.nan, X))
    with pytest.raises(ValueError, match="holds what is no number"):
        model.predict(np.full((2, 64), "a"))


ROWS_DAMAGE: list[dict[str, Any]] = [
    {"pixels": {"side": 9, "pool": 1, "scale": 1.0}},
    {"pixels": {"side": "8", "pool": 0, "scale": 1.0}},
    {"pixels": 3},
    {"layers": 2},
    {"layers": 0},
    {"classes": [1, 2]},
    {"classes": [[]]},
    {"words": {"how": "eval"}, "pixels": None},
]


@pytest.mark.parametrize("change", ROWS_DAMAGE, ids=str)
def test_files_of_another_kind_of_rows_are_refused(change: dict, tmp_path: Path) -> None:
    task: Any = weight_decay("digits", **SMALL)
    save_model(task.model(task.hyper, task.params), tmp_path)
    about = json.loads((tmp_path / "model.json").read_text()) | change
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="this is no model of this program"):
        load_model(tmp_path)
