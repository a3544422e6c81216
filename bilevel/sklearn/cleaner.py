r"""Trust in training examples, by hypergradient of the loss on a few that are trusted.

    inner = sum_i t_i loss(x_i, y_i) + 1/2 alpha |w|^2,   t_i = 1 / (1 + e^{-theta_i})
    d outer / d t_i = -a^T grad_w loss(x_i, y_i),         H a = grad_w outer on the trusted rows

Franceschi et al., ICML 2017 (data hyper-cleaning); the gradient is the influence function of Koh,
Liang, ICML 2017.
"""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.utils import get_tags
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, check_X_y, validate_data

from bilevel.sklearn.base import FLOATS
from bilevel.sklearn.losses import LOGISTIC, MULTINOMIAL, SQUARED, Folds, GlmFolds, GlmLoss, Link
from bilevel.sklearn.search import RESOLUTION, Evaluation, minimise_outer


class TrustLoss:
    """The loss on trusted rows; ``theta``: log-odds of the weights of the others."""

    def __init__(self, link: Link, rows: GlmFolds, trained: np.ndarray, alpha: float) -> None:
        """Take rows of one fold; ``trained [n]`` is 1 for those that are weighed."""
        self.rows, self.trained, self.alpha = rows, trained, alpha
        self.loss = GlmLoss(link, rows)

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Return the value and its gradient."""
        trust, rows = expit(theta), self.rows
        weight = self.trained * trust
        total = weight.sum()
        rows.train, rows.size = (weight / total)[:, None], np.array([total])
        found = self.loss.evaluate_to_rounding(np.array([np.log(self.alpha)]))
        slope = self.loss.link.derive(rows.product(self.loss.w), rows.target)[0]
        influence = -np.sum(slope * rows.product(self.loss.adjoint), (1, 2)) / total
        return found._replace(grad=weight * influence * (1 - trust))


def _estimator_has(name: str) -> Callable[["DataCleaner"], bool]:
    """Make the check whether the wrapped estimator has a method."""
    return lambda cleaner: hasattr(getattr(cleaner, "estimator_", cleaner.estimator), name)


class DataCleaner(BaseEstimator):
    """Trust weights of training examples, such that a linear model does well on trusted ones.

    Parameters
    ----------
    estimator : any scikit-learn estimator that takes ``sample_weight``; it is fitted with the
        weights, and says whether this is classification. The weights themselves are tuned on a
        linear model: logistic regression, or ridge.
    alpha : penalty of that linear model, as in :class:`HypergradRidge` and of logistic regression.
    max_iter : descent steps. Few: a trusted set is small, and can be over-fitted.

    Attributes
    ----------
    trust_ : weights between 0 and 1, ``[n]``.
    estimator_ : ``estimator`` fitted to all training rows with them; ``classes_``, its classes.
    trusted_loss_path_ : loss on the trusted rows after each step.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> wrong = np.where(np.arange(150) % 5 == 0, (y + 1) % 3, y)
    >>> cleaner = DataCleaner(LogisticRegression(max_iter=1000))
    >>> trust = cleaner.fit_transform(X, wrong, X[1::7], y[1::7])
    >>> bool(trust[y != wrong].mean() < trust[y == wrong].mean())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, estimator, *, alpha=1.0, max_iter=20, tol=1e-4):
        self.estimator = estimator
        self.alpha = alpha
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X, y, X_trusted=None, y_trusted=None, *, trusted=None):
        """Weigh ``X, y`` by what they do for the trusted rows, then fit ``estimator``.

        Parameters
        ----------
        X, y : ``[n, d]``, ``[n]``.
        X_trusted, y_trusted : rows that are sure, or
        trusted : ``[n]``, true for the rows of ``X`` that are; the others are weighed, and
            ``estimator`` sees these at full weight. In a pipeline:
            ``pipeline.fit(X, y, datacleaner__trusted=mask)``, so that they pass the same steps.

        Raises
        ------
        ValueError : both or neither of the two, or bad data, in the words of scikit-learn.
        """
        self._validate_params()
        own: Any = validate_data(self, X, y, dtype=FLOATS)
        X, y = own
        if (trusted is None) == (X_trusted is None):
            raise ValueError(
                "DataCleaner needs rows that are trusted: give X_trusted and y_trusted, or "
                "trusted, a boolean mask over the rows of X, and not both."
            )
        if trusted is not None:
            mask = np.asarray(trusted)
            if mask.dtype != bool or mask.shape != (len(y),) or mask.all() or not mask.any():
                raise ValueError(
                    f"trusted must be a boolean mask over the {len(y)} rows of X, true for some "
                    f"and not for all, got {mask.dtype} of shape {mask.shape}."
                )
            found = self._weigh(X[~mask], y[~mask], X[mask], y[mask])
            self.trust_ = np.ones(len(y))
            self.trust_[~mask] = found
        else:
            dtype: Any = FLOATS
            other: Any = check_X_y(X_trusted, y_trusted, dtype=dtype)
            if other[0].shape[1] != X.shape[1]:
                raise ValueError(
                    f"X_trusted has {other[0].shape[1]} features, but X has {X.shape[1]} features."
                )
            self.trust_ = self._weigh(X, y, *other)
        fresh: Any = clone(self.estimator)
        self.estimator_ = fresh.fit(X, y, sample_weight=self.trust_)
        if is_classifier(self.estimator_):
            self.classes_ = fresh.classes_
        return self

    def _weigh(
        self, X: np.ndarray, y: np.ndarray, X_trusted: np.ndarray, y_trusted: np.ndarray
    ) -> np.ndarray:
        """Return the weights of ``X, y``, and set the path of the loss."""
        n, both = len(y), np.vstack([X, X_trusted])
        link, target = self._target(np.concatenate([y, y_trusted]), n)
        # Both tables as one matrix; which rows are trained on and which are trusted, as weights.
        trained = (np.arange(len(both)) < n).astype(float)
        sides = Folds(trained[None] > 0, trained[None] == 0, np.ones(1))
        rows = GlmFolds(both.astype(np.float64), target, np.ones(len(both)), sides, True)
        path, losses = minimise_outer(
            TrustLoss(link, rows, trained, float(self.alpha)),
            np.zeros(len(both)),
            np.tile([-8.0, 8.0], (len(both), 1)),
            max_iter=self.max_iter,
            tol=self.tol,
        )
        # Losses that differ by rounding are equal: the first of them, the closest to equal trust.
        last = int(np.argmax(losses <= np.min(losses) + RESOLUTION * losses[0]))
        self.trusted_loss_path_ = losses[: last + 1]
        return expit(path[last, :n])

    def _target(self, y: np.ndarray, n: int) -> tuple[Link, np.ndarray]:
        if not is_classifier(self.estimator):
            return SQUARED, np.asarray(y, np.float64)[:, None]
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"DataCleaner needs at least 2 classes, got only {classes[0]!r}.")
        if strange := set(labels[n:]) - set(labels[:n]):
            raise ValueError(f"y_trusted has classes that y has not: {classes[list(strange)]}.")
        target = np.eye(len(classes))[labels]
        return (LOGISTIC, target[:, 1:]) if len(classes) == 2 else (MULTINOMIAL, target)

    def fit_transform(self, X, y, X_trusted=None, y_trusted=None, *, trusted=None):
        """Fit, and return the weights ``[n]``, for any tool that takes ``sample_weight``."""
        return self.fit(X, y, X_trusted, y_trusted, trusted=trusted).trust_

    def predict(self, X):
        """Predict by the estimator that was fitted with the weights."""
        check_is_fitted(self)
        return self.estimator_.predict(X)

    @available_if(_estimator_has("predict_proba"))
    def predict_proba(self, X):
        """Return the probability of each class, if ``estimator`` has it."""
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    @available_if(_estimator_has("decision_function"))
    def decision_function(self, X):
        """Return the scores of ``estimator``, if it has them."""
        check_is_fitted(self)
        return self.estimator_.decision_function(X)

    @available_if(_estimator_has("score"))
    def score(self, X, y, sample_weight=None):
        """Return the score of ``estimator``: accuracy, or R squared."""
        check_is_fitted(self)
        return self.estimator_.score(X, y, sample_weight=sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        own = get_tags(self.estimator)
        tags.estimator_type = own.estimator_type
        tags.classifier_tags, tags.regressor_tags = own.classifier_tags, own.regressor_tags
        tags.target_tags.required = True
        return tags
