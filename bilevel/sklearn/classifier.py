"""What the linear classifiers share: labels, weights of classes, probabilities."""

import warnings
from typing import ClassVar

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets

from bilevel.sklearn.base import HypergradEstimator
from bilevel.sklearn.losses import Matrix


class LinearClassifier(ClassifierMixin, HypergradEstimator):
    """Base of the classifiers by linear scores."""

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **HypergradEstimator._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }
    _classifier = True
    classes_: np.ndarray
    class_weight: dict | str | None

    def _encode(self, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Set ``classes_``; return their numbers ``[n]``, and weights that count classes too."""
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data "
                f"contains only one class: {self.classes_[0]!r}"
            )
        of_class = compute_class_weight(
            self.class_weight, classes=self.classes_, y=y, sample_weight=weight
        )
        return labels, weight * of_class[labels]

    def _split_classes(
        self,
        X: Matrix,
        y: np.ndarray,
        groups: np.ndarray | None,
        labels: np.ndarray,
        weight: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the splits, with a warning where one trains without a class."""
        splits = self._splits(X, y, groups)
        if splits:
            warn_of_missing_classes(splits[0], labels, weight, self.classes_)
        return splits

    def decision_function(self, X):
        """Return ``X @ coef_.T + intercept_``: ``[n]`` for two classes, else ``[n, classes]``."""
        scores = self._linear(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X):
        """Return the likeliest class of each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def predict_proba(self, X):
        """Return the probability of each class, ``[n, classes]``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], 1)
        return softmax(scores, axis=1)

    def predict_log_proba(self, X):
        """Return the logarithm of :meth:`predict_proba`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([log_expit(-scores), log_expit(scores)], 1)
        return log_softmax(scores, axis=1)


def warn_of_missing_classes(
    train: np.ndarray, labels: np.ndarray, weight: np.ndarray, classes: np.ndarray
) -> None:
    """Warn of splits that train on no row of a class; ``train [K, n]``, ``labels [n]``."""
    missing = [
        (k, name)
        for k, rows in enumerate(train)
        for c, name in enumerate(classes)
        if not weight[rows & (labels == c)].any()
    ]
    if missing:
        pairs = ", ".join(f"fold {k} of class {name!s}" for k, name in missing[:4])
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        warnings.warn(
            f"Training folds without a row of a class: {pairs}{more} (folds from 0). There that "
            "class has next to no probability, and the log-loss of its held-out rows says how "
            "large a penalty hides this, not which is good. Give a cv that keeps the classes "
            "together, such as StratifiedKFold, with at most as many splits as the rarest class "
            "has rows, or leave the class out.",
            UserWarning,
            stacklevel=3,
        )
