"""A fitted model of a table with its preprocessing, as an estimator of scikit-learn's kind."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if

from tasks.datasets.columns import Column, encode
from tasks.datasets.design import Design
from tasks.datasets.features import Features


@dataclass(frozen=True)
class LinearCore:
    """``Z @ weights + intercept`` of standardised columns; weights ``[d]``, or ``[d, C]``."""

    weights: np.ndarray
    intercept: np.ndarray

    def __call__(self, Z: np.ndarray) -> np.ndarray:
        """Return scores, ``[n]`` or ``[n, C]``."""
        return Z @ self.weights + self.intercept


@dataclass(frozen=True)
class KernelCore:
    """``k(Z, rows) @ dual + mean`` with the kernel ``exp(-|(z - z') / scales|^2 / 2)``."""

    rows: np.ndarray
    dual: np.ndarray
    scales: np.ndarray
    mean: np.ndarray

    def __call__(self, Z: np.ndarray) -> np.ndarray:
        """Return scores, ``[n]``, some rows at a time."""
        b = self.rows / self.scales
        scores = np.empty(len(Z))
        for first in range(0, len(Z), 1024):
            a = Z[first : first + 1024] / self.scales
            squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
            scores[first : first + 1024] = np.exp(-np.maximum(squares, 0) / 2) @ self.dual
        return scores + self.mean


Core = LinearCore | KernelCore


class _Tabular(BaseEstimator):
    """What both kinds share: from a table as it comes to the scores of the model.

    Parameters
    ----------
    columns : the raw columns, with what the training rows said of them.
    features : standardisation and expansion.
    core : from standardised columns to scores.
    target : name of what is predicted.
    """

    def __init__(
        self, columns: tuple[Column, ...], features: Features, core: Core, target: str = "y"
    ) -> None:
        self.columns = columns
        self.features = features
        self.core = core
        self.target = target

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the raw columns, which a table has to have."""
        return np.array([column.name for column in self.columns], dtype=object)

    @property
    def n_features_in_(self) -> int:
        """Number of raw columns."""
        return len(self.columns)

    def fit(self, X: Any, y: Any = None) -> "_Tabular":
        """Return the model as it is: a saved model stays what it was, as a ``FrozenEstimator``."""
        del X, y
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_clone__(self) -> "_Tabular":
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.categorical = tags.input_tags.allow_nan = True
        tags.target_tags.required = False
        return tags

    def transform(self, X: Any) -> np.ndarray:
        """Return the standardised columns that the model is a function of, ``[n, d]``.

        Parameters
        ----------
        X : a table with at least ``feature_names_in_``, in any order; or rows of numbers and texts
            in the order of ``feature_names_in_``.

        Raises
        ------
        ValueError : a column is missing, or holds what it did not hold before.
        """
        if not isinstance(X, pd.DataFrame):
            given = np.asarray(X)
            if given.ndim != 2 or given.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X is {list(given.shape)}: expected [rows, {self.n_features_in_}], the "
                    f"columns {', '.join(self.feature_names_in_)}."
                )
            X = pd.DataFrame(given, columns=list(self.feature_names_in_))
        if absent := [name for name in self.feature_names_in_ if name not in X.columns]:
            raise ValueError(
                f"{len(absent)} columns that the model was fitted on are missing: "
                f"{', '.join(absent[:12])}. There are {', '.join(map(str, X.columns[:12]))}."
            )
        rows: Any = X
        parsed = {column.name: self._parse(column, rows[column.name]) for column in self.columns}
        return self.features.transform(encode(self.columns, parsed))

    @staticmethod
    def _parse(column: Column, series: pd.Series) -> np.ndarray:
        try:
            parsed = column.parse(series)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column {column.name!r} held a {column.kind} in the training rows, and holds "
                f"something else here: {error}"
            ) from error
        if column.kind != "category" and np.isinf(parsed).any():
            raise ValueError(f"column {column.name!r} has infinite values.")
        return parsed

    @property
    def coefficients(self) -> dict[str, Any]:
        """Of a linear model: by column, in target units per standard deviation of the column.

        The entry ``"intercept"`` comes first; of many classes each entry is a list, class by class.
        """
        if not isinstance(self.core, LinearCore):
            return {}
        names = self.features.names
        found = {"intercept": np.asarray(self.core.intercept).tolist()}
        return found | {name: w.tolist() for name, w in zip(names, self.core.weights, strict=True)}


class TabularRegressor(RegressorMixin, _Tabular):
    """A fitted regression of a table."""

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions in units of the target, ``[n]``; ``X`` as for ``transform``."""
        return self.core(self.transform(X))


class Labelled(ClassifierMixin):
    """From scores to labels and probabilities; its heir has ``classes`` and ``log_odds``."""

    classes: tuple[Any, ...]
    log_odds: bool

    def decision_function(self, X: Any) -> np.ndarray:
        """Return log-odds ``[n]`` of the second class, or a score of each, ``[n, C]``."""
        raise NotImplementedError

    @property
    def classes_(self) -> np.ndarray:
        """The labels, as they were in the table."""
        return np.array(self.classes)

    @available_if(lambda model: model.log_odds)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, ``[n, C]``."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            second = expit(scores)
            return np.stack([1 - second, second], axis=1)
        return softmax(scores, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return labels, ``[n]``; ``X`` as for ``transform``."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        return self.classes_[chosen]


class TabularClassifier(Labelled, _Tabular):
    """A fitted classification of a table: of two classes by the sign of a score, else the largest.

    Parameters
    ----------
    columns, features, core, target : as for a regression.
    classes : the labels, in the order of the scores.
    log_odds : whether the scores are logarithms of odds, so that there are probabilities.
    """

    def __init__(
        self,
        columns: tuple[Column, ...],
        features: Features,
        core: Core,
        target: str = "y",
        classes: tuple[Any, ...] = (),
        log_odds: bool = True,
    ) -> None:
        super().__init__(columns, features, core, target)
        self.classes = classes
        self.log_odds = log_odds

    def decision_function(self, X: Any) -> np.ndarray:
        """Return log-odds ``[n]`` of the second class, or a score of each, ``[n, C]``."""
        return self.core(self.transform(X))


def make_model(
    design: Design, core: Core, *, log_odds: bool = True
) -> TabularRegressor | TabularClassifier:
    """Return the model of a task: its design says how rows become standardised columns."""
    given: dict[str, Any] = {"columns": design.columns, "features": design.features}
    given |= {"core": core, "target": design.table.target}
    if design.table.classes:
        return TabularClassifier(**given, classes=design.table.labels, log_odds=log_odds)
    return TabularRegressor(**given)
