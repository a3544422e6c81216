"""Data of the studies of open questions: tables that scikit-learn brings, and a synthetic one.

Columns have mean 0 and equal variance, rows a mean square length of 1, as `problems.make_design`
has them, so that penalties mean the same everywhere; the order of rows is drawn from the seed.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn import datasets

import bilevel as bl
from experiments.studies.open_questions import problems

REGRESSION = ("synthetic", "diabetes", "wine")
CLASSES = ("synthetic", "breast cancer", "digits")


def load_regression(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``X [n, d]`` and ``y [n]`` of mean 0 and variance 1.

    ``synthetic``: 128 rows, 8 features; ``diabetes``: 442 and 10; ``wine``: 178 and 12, the alcohol
    from the other measurements.

    Raises
    ------
    ValueError : a name that is not one of ``REGRESSION``.

    Examples
    --------
    >>> X, y = load_regression("wine", 0)
    >>> X.shape, round(float((X**2).sum(1).mean()), 6)
    ((178, 12), 1.0)
    """
    if name == "synthetic":
        X, w, rng = problems.make_design(seed, 128, 8)
        return X, X @ w + 0.5 * rng.standard_normal(len(X))
    if name == "diabetes":
        X, y = _load("diabetes", scaled=False)
    elif name == "wine":
        X, _ = _load("wine")
        X, y = X[:, 1:], X[:, 0]
    else:
        raise ValueError(f"load_regression: no data {name!r}; there are {', '.join(REGRESSION)}.")
    rows = np.random.default_rng(seed).permutation(len(y))
    return _scale(X)[rows], ((y - y.mean()) / y.std())[rows]


def load_classes(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``X [n, d]`` and labels ``y [n]``, -1 or 1.

    ``synthetic``: 128 rows, 8 features; ``breast cancer``: 569 and the 10 means; ``digits``: threes
    against eights, 357 and the 10 leading principal components.

    Raises
    ------
    ValueError : a name that is not one of ``CLASSES``.

    Examples
    --------
    >>> X, y = load_classes("digits", 0)
    >>> X.shape, sorted(set(y.tolist()))
    ((357, 10), [-1.0, 1.0])
    """
    if name == "synthetic":
        X, w, rng = problems.make_design(seed, 128, 8)
        return X, np.sign(X @ w + 0.5 * rng.standard_normal(len(X)))
    if name == "breast cancer":
        X, y = _load("breast_cancer")
        X, y = X[:, :10], 2.0 * y - 1
    elif name == "digits":
        X, digit = _load("digits")
        X, digit = X[(digit == 3) | (digit == 8)], digit[(digit == 3) | (digit == 8)]
        U, sizes, _ = np.linalg.svd(X - X.mean(0), full_matrices=False)
        X, y = U[:, :10] * sizes[:10], np.where(digit == 3, 1.0, -1.0)
    else:
        raise ValueError(f"load_classes: no data {name!r}; there are {', '.join(CLASSES)}.")
    rows = np.random.default_rng(seed).permutation(len(y))
    return _scale(X)[rows], y[rows]


def make_network(real: bool, seed: int) -> bl.testing.Case:
    """Return the tanh network of `bl.testing.mlp`, on its own data or on two columns of diabetes.

    ``real``: 100 rows to train and 100 to validate, the body mass index and ``s5``, the two columns
    that a linear model needs most.
    """
    case = bl.testing.mlp(seed)
    if not real:
        return case
    X, y = load_regression("diabetes", seed)
    X = X[:, [2, 8]] * X.shape[1] ** 0.5
    halves = ({"x": X[rows], "y": y[rows]} for rows in (slice(0, 100), slice(100, 200)))
    return replace(case, data=bl.Data(*halves))


def _scale(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(0)) / (X.std(0) * X.shape[1] ** 0.5)


def _load(name: str, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of a table of scikit-learn."""
    table: Any = getattr(datasets, f"load_{name}")(**settings)
    return table.data, table.target
