"""Weights of training examples, judged by fits on them and on the validation rows together."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from tasks.base import Metrics
from tasks.datasets.images import Images, cast


class CleaningJudge:
    """Judges weights on the test rows, by a model of weighted training and validation rows.

    Parameters
    ----------
    parts : the rows, whose training labels are right.
    labels : those of the training rows, some of them wrong.
    fit : ``(weights, (X, y)) -> model``.
    guess : ``(model, X) -> labels``.
    """

    def __init__(
        self,
        parts: Images,
        labels: np.ndarray,
        fit: Callable[[np.ndarray, tuple[Array, ...]], Any],
        guess: Callable[[Any, np.ndarray], np.ndarray],
    ) -> None:
        self.parts, self.labels, self.wrong = parts, labels, labels != parts.train[1]
        X = np.concatenate([parts.train[0], parts.validation[0]])
        self.rows = cast(X, np.concatenate([labels, parts.validation[1]]))
        self._fit, self._guess = fit, guess

    def fit(self, weights: np.ndarray, trust: float = 1.0) -> Any:
        """Return the model of these weights of training rows; the mean of all is kept at 1."""
        every = np.concatenate([weights, np.full(len(self.parts.validation[1]), trust)])
        return self._fit(every / every.mean(), self.rows)

    def accuracy(self, model: Any) -> float:
        """Return the share of right labels among those of the test rows."""
        X, y = self.parts.test
        return float(np.mean(self._guess(model, X) == y))

    def score(self, weights: np.ndarray, trust: float = 1.0) -> Metrics:
        """Fit with these weights, and measure the model on the test rows."""
        return self._score(self.fit(weights, trust))

    def _score(self, model: Any) -> Metrics:
        accuracy = self.accuracy(model)
        return {"test_error": 1 - accuracy, "test_accuracy": accuracy}

    def metrics(self, hyper: Array) -> Metrics:
        """Score the weights that a run has found, and what they flag."""
        weights = np.asarray(jax.nn.sigmoid(hyper))
        return self.score(weights) | {"f1": f1(weights < weights.max() / 2, self.wrong)}

    def baselines(self) -> dict[str, Metrics]:
        """Score what needs no hypergradient, and what nobody has: the wrong labels known."""
        n = len(self.wrong)
        alone = self.fit(np.zeros(n))
        disputed = self._guess(alone, self.parts.train[0]) != self.labels
        return {
            "validation rows alone": self._score(alone),
            "drop labels that the model of the validation rows disputes": self.score(
                (~disputed).astype(float)
            )
            | {"f1": f1(disputed, self.wrong)},
            "training rows as they are, and validation rows": self.score(np.ones(n)),
            "training rows as they are, alone": self.score(np.ones(n), trust=0.0),
            "oracle: wrong labels known and dropped": self.score((~self.wrong).astype(float))
            | {"f1": 1.0},
        }

    def draw(self, figure: Any, hyper: Array, params: Any) -> None:
        """Draw the weights of right and wrong labels, and the examples that are trusted least."""
        del params
        weights, wrong = np.asarray(jax.nn.sigmoid(hyper)), self.wrong
        histogram, gallery = figure.subfigures(1, 2)
        axes = histogram.subplots()
        axes.hist([weights[~wrong], weights[wrong]], 20, label=["label right", "label wrong"])
        axes.set(xlabel="weight", ylabel="examples", title="weights found")
        axes.legend()
        gallery.suptitle("smallest weights: label given, x if it is wrong")
        for i, place in zip(np.argsort(weights), gallery.subplots(4, 5).flat, strict=False):
            place.imshow(self.parts.train[0][i].reshape(self.parts.shape), cmap="gray_r")
            place.set_title(f"{self.labels[i]}{' x' if wrong[i] else ''}", fontsize=8)
            place.set_axis_off()


def f1(flagged: np.ndarray, wrong: np.ndarray) -> float:
    """Return the F1 score of the flags; a wrong label is the positive class."""
    return float(2 * np.sum(flagged & wrong) / max(np.sum(flagged) + np.sum(wrong), 1))


def describe_weights(hyper: Array) -> dict[str, float]:
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
