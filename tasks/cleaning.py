r"""Data cleaning: one weight per training example, found by the loss on a few clean ones.

    inner(w, h) = mean_i sigmoid(h_i) loss(x_i, y_i; w) + decay |w|^2     labels partly wrong
    outer(w)    = mean_i loss(x_i, y_i; w)                                labels right

Franceschi, Donini, Frasconi, Pontil, "Forward and reverse gradient-based hyperparameter
optimization", ICML 2017, section 5.1; softmax regression with an intercept.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.images import Images, cast, images
from tasks.models.rows import RowsClassifier, make_layers
from tasks.parts.weighting import Mean, Weighted, fitter, linear, linear_zeros, predict, squashed

NOISE = ("uniform", "other", "pair")


def corrupt(
    y: np.ndarray, classes: int, noise: str, fraction: float, rng: np.random.RandomState
) -> np.ndarray:
    """Draw ``round(fraction n)`` of the labels anew, chosen at random, ``[n]``.

    ``"uniform"`` draws from all classes, so that one in ``classes`` stays right; ``"other"`` from
    the wrong ones; ``"pair"`` takes the next class, which a classifier learns as if it were right.

    Raises
    ------
    ValueError : an unknown noise, a fraction outside [0, 1].
    """
    if noise not in NOISE:
        raise ValueError(f"noise={noise!r} must be one of {', '.join(NOISE)}.")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction!r} must be a share of the labels, between 0 and 1.")
    chosen = rng.permutation(len(y))[: round(fraction * len(y))]
    low = {"uniform": 0, "other": 1, "pair": 1}[noise]
    high = 2 if noise == "pair" else classes
    out = y.copy()
    out[chosen] = (y[chosen] + rng.randint(low, high, len(chosen))) % classes
    return out


def f1(flagged: np.ndarray, wrong: np.ndarray) -> float:
    """Return the F1 score of the flags; a wrong label is the positive class."""
    return float(2 * np.sum(flagged & wrong) / max(np.sum(flagged) + np.sum(wrong), 1))


def cleaning(
    data: str = "digits",
    noise: str = "pair",
    fraction: float = 0.45,
    *,
    train: int = 1000,
    validation: int = 100,
    test: int | None = None,
    decay: float = 1e-4,
    refit_steps: int = 600,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of weighting training examples of which some have wrong labels.

    Parameters
    ----------
    data, train, validation, test, root, seed : as for :func:`tasks.datasets.images.images`.
    noise, fraction : as for :func:`corrupt`; only training labels are touched, once.
    decay : of the inner loss, times the squares of all weights and intercepts.
    refit_steps : of heavy ball (step 0.1, momentum 0.9) in every fit for the table.

    Notes
    -----
    ``test_error`` and ``test_accuracy`` belong to a fit on weighted training rows and validation
    rows together, ``inner_accuracy`` to the inner model. An example is flagged if its weight is
    below half of the largest; ``f1`` compares the flags with the labels that are really wrong.

    Raises
    ------
    ValueError : bad data, sizes or noise.

    Examples
    --------
    >>> from tasks.cleaning import cleaning
    >>> cleaning("digits", train=200, validation=50).hyper.shape
    (200,)
    """
    parts = images(data, train=train, validation=validation, test=test, root=root, seed=seed)
    rng = np.random.RandomState(seed + 1)  # another stream than the split's
    X, y = parts.train
    labels = corrupt(y, parts.classes, noise, fraction, rng)
    referee = _Referee(parts, labels, decay, refit_steps)
    return Task(
        name=f"cleaning {data}",
        problem=bl.Problem(Weighted(linear, squashed, decay), Mean(linear)),
        data=bl.Data(inner=cast(X, labels, np.arange(len(y))), outer=cast(*parts.validation)),
        hyper=jnp.zeros(len(y)),
        params=linear_zeros(X.shape[1], parts.classes),
        metrics=referee.metrics,
        baselines=referee.baselines,
        describe=describe,
        model=referee.model,
        notes=parts.notes()
        | {"noise": noise, "fraction": fraction, "wrong_labels": int(np.sum(labels != y))},
        picture=partial(_picture, parts, labels),
    )


def describe(hyper: Array) -> dict[str, float]:
    """Return the spread of the weights, and the share that is flagged."""
    weights = np.asarray(jax.nn.sigmoid(hyper))
    low, middle, high = np.quantile(weights, [0, 0.5, 1])
    flagged = float(np.mean(weights < high / 2))
    return {
        "smallest weight": low,
        "median weight": middle,
        "largest weight": high,
        "share flagged": flagged,
    }


class _Referee:
    """Fits on weighted training rows and validation rows together, judged on the test rows."""

    def __init__(self, parts: Images, labels: np.ndarray, decay: float, steps: int) -> None:
        self.parts, self.wrong = parts, labels != parts.train[1]
        self.validation = len(parts.validation[1])
        X = np.concatenate([parts.train[0], parts.validation[0]])
        self.rows = cast(X, np.concatenate([labels, parts.validation[1]]))
        solver = bl.SGD(step_size=0.1, momentum=0.9)
        self._fit = fitter(linear, solver, steps, decay)

    def fit(self, weights: np.ndarray, trust: float = 1.0) -> PyTree:
        """Return params fitted with these weights of the training rows; their mean is kept at 1."""
        every = np.concatenate([weights, np.full(self.validation, trust)])
        dtype = jnp.result_type(float)
        start = linear_zeros(self.rows[0].shape[1], self.parts.classes)
        every = jnp.asarray(every / every.mean(), dtype)
        return self._fit(start, every, self.rows, jax.random.key(0))

    def accuracy(self, params: PyTree) -> float:
        X, y = self.parts.test
        return float(np.mean(predict(linear(params, jnp.asarray(X))) == y))

    def score(self, weights: np.ndarray, trust: float = 1.0) -> Metrics:
        accuracy = self.accuracy(self.fit(weights, trust))
        return {"test_error": 1 - accuracy, "test_accuracy": accuracy}

    def model(self, hyper: Array, _: PyTree) -> RowsClassifier:
        found = self.fit(np.asarray(jax.nn.sigmoid(hyper)))
        return RowsClassifier(self.parts.pixels, make_layers(found), self.parts.labels)

    def metrics(self, hyper: Array, params: PyTree) -> Metrics:
        weights = np.asarray(jax.nn.sigmoid(hyper))
        flagged = weights < weights.max() / 2
        return self.score(weights) | {
            "inner_accuracy": self.accuracy(params),
            "f1": f1(flagged, self.wrong),
        }

    def baselines(self) -> dict[str, Metrics]:
        """Score what needs no hypergradient, and what nobody has: the wrong labels known."""
        n = len(self.wrong)
        alone = self.fit(np.zeros(n))
        y = np.asarray(self.rows[1][:n])
        disputed = predict(linear(alone, jnp.asarray(self.parts.train[0]))) != y
        accuracy = self.accuracy(alone)
        return {
            "validation rows alone": {"test_error": 1 - accuracy, "test_accuracy": accuracy},
            "drop labels that the model of the validation rows disputes": self.score(
                (~disputed).astype(float)
            )
            | {"f1": f1(disputed, self.wrong)},
            "training rows as they are, and validation rows": self.score(np.ones(n)),
            "training rows as they are, alone": self.score(np.ones(n), trust=0.0),
            "oracle: wrong labels known and dropped": self.score((~self.wrong).astype(float))
            | {"f1": 1.0},
        }


def _picture(parts: Images, labels: np.ndarray, figure: Any, hyper: Array, params: PyTree) -> None:
    """Draw the weights of right and wrong labels, and the examples that are trusted least."""
    del params
    weights = np.asarray(jax.nn.sigmoid(hyper))
    wrong = labels != parts.train[1]
    histogram, gallery = figure.subfigures(1, 2)
    axes = histogram.subplots()
    axes.hist([weights[~wrong], weights[wrong]], 20, label=["label right", "label wrong"])
    axes.set(xlabel="weight", ylabel="examples", title="weights found")
    axes.legend()
    gallery.suptitle("smallest weights: label given, x if it is wrong")
    for i, place in zip(np.argsort(weights), gallery.subplots(4, 5).flat, strict=False):
        place.imshow(parts.train[0][i].reshape(parts.shape), cmap="gray_r")
        place.set_title(f"{labels[i]}{' x' if wrong[i] else ''}", fontsize=8)
        place.set_axis_off()
