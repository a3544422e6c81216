"""Types of the data."""

from typing import TypeAlias

import numpy as np
from scipy import sparse

Matrix: TypeAlias = np.ndarray | sparse.csr_matrix  # rows of data, dense or sparse


def centre_full_columns(X: Matrix, weight: np.ndarray) -> Matrix:
    """Return sparse rows whose columns without zeros are about their weighted mean.

    Sums of squares about a mean that is large cancel. Only such columns can have one, by their
    spread: where a part p of the rows is not 0, its square is at most p / (1 - p) of the variance.
    Dense rows are returned as they are.
    """
    if isinstance(X, np.ndarray):
        return X
    stored = X.copy()
    stored.sum_duplicates()
    used = np.repeat(weight > 0, np.diff(stored.indptr))
    count = np.bincount(stored.indices[used], minlength=stored.shape[1])
    means = np.asarray(weight @ stored).ravel() / weight.sum()
    stored.data -= np.where(count == np.count_nonzero(weight), means, 0)[stored.indices]
    return stored
