"""A fitted classifier of rows of numbers as they come: pixels of images, counts of words."""

from typing import Any

import jax
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator

from tasks.datasets.images import Pixels
from tasks.datasets.sparse import Words
from tasks.models.estimators import Labelled

Layers = tuple[tuple[np.ndarray, np.ndarray], ...]


class RowsClassifier(Labelled, BaseEstimator):
    """Dense layers with rectified units between, of rows that were prepared as in the run.

    Parameters
    ----------
    prepare : from rows as they come, ``[n, d]``, to what the first layer takes.
    layers : ``(W, b)`` of each layer.
    classes : the labels, in the order of the scores.
    log_odds : whether the scores are logarithms of odds, so that there are probabilities.
    """

    def __init__(
        self,
        prepare: Pixels | Words,
        layers: Layers,
        classes: tuple[Any, ...],
        log_odds: bool = True,
    ) -> None:
        self.prepare = prepare
        self.layers = layers
        self.classes = classes
        self.log_odds = log_odds

    @property
    def n_features_in_(self) -> int:
        """Number of pixels or of columns."""
        return self.prepare.inputs

    @property
    def coefficients(self) -> dict[str, Any]:
        """Empty: pixels and columns of counts have no names."""
        return {}

    def fit(self, X: Any, y: Any = None) -> "RowsClassifier":
        """Return the model as it is: a saved model stays what it was, as a ``FrozenEstimator``."""
        del X, y
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_clone__(self) -> "RowsClassifier":
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores ``[n, C]``, or of two classes with one score the log-odds ``[n]``.

        Parameters
        ----------
        X : rows ``[n, d]``, dense or sparse, in the units of the run's data; images ``[n, s, s]``.

        Raises
        ------
        ValueError : another number of columns, texts, entries that are not finite.
        """
        rows = self.prepare(self._checked(X))
        for place, (W, b) in enumerate(self.layers):
            rows = np.asarray((np.maximum(rows, 0) if place else rows) @ W + b)
        return rows[:, 0] if rows.shape[1] == 1 else rows

    def _checked(self, X: Any) -> Any:
        rows = X.to_numpy() if isinstance(X, pd.DataFrame) else X
        rows = rows if sp.issparse(rows) else np.asarray(rows)
        rows = rows.reshape(len(rows), -1) if rows.ndim == 3 else rows
        if rows.ndim != 2 or rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X is {list(rows.shape)}: expected [rows, {self.n_features_in_}], the columns of "
                "the data that the model was fitted on, in their order, without labels."
            )
        try:
            rows = rows.astype(float)
        except ValueError as error:
            raise ValueError(f"X holds what is no number: {error}") from error
        if not np.isfinite(rows.data if sp.issparse(rows) else rows).all():
            raise ValueError("X has missing or infinite entries.")
        return rows


def make_layers(params: Any) -> Layers:
    """Return ``(W, b)`` of each layer: the matrices and the vectors of a tree, in their order."""
    leaves = [np.asarray(leaf, float) for leaf in jax.tree.leaves(params)]
    matrices = [leaf for leaf in leaves if leaf.ndim == 2]
    return tuple(zip(matrices, [leaf for leaf in leaves if leaf.ndim == 1], strict=True))
