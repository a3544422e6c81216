"""Folds as weights: every split is a pair of rows of weights, so that shapes never differ."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.random import RandomState
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold, check_cv

from bilevel.sklearn.losses.arrays import Matrix

Splitter = int | BaseCrossValidator | Iterable | None


class Folds(NamedTuple):
    """The folds of one problem: which rows ``train``, which are ``held`` out, boolean ``[F, n]``.

    ``share [F]`` weighs the folds in the outer loss and sums to 1. The last row is no fold: it
    trains on all rows of the problem, and holds out what the problem itself must not see, if any.
    """

    train: np.ndarray
    held: np.ndarray
    share: np.ndarray


def make_splits(
    cv: Splitter,
    X: Matrix,
    y: np.ndarray,
    groups: np.ndarray | None,
    *,
    classifier: bool,
    random_state: int | RandomState | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows each split trains on and holds out, boolean ``[K, n]`` each."""
    if cv is None or isinstance(cv, int):
        cv = 5 if cv is None else cv
        if random_state is not None:
            kind = StratifiedKFold if classifier and np.ndim(y) == 1 else KFold
            cv = kind(cv, shuffle=True, random_state=random_state)
    chosen: Any = cv
    splitter: Any = check_cv(chosen, y, classifier=classifier)
    pairs = list(splitter.split(X, y, groups))
    train, held = np.zeros((2, len(pairs), len(y)), bool)
    for k, (inside, outside) in enumerate(pairs):
        train[k, inside], held[k, outside] = True, True
    return train, held


def make_folds(
    train: np.ndarray, held: np.ndarray, weight: np.ndarray, without: int | None = None
) -> Folds:
    """Make one problem of all splits; ``without=k``: blind to what split k holds out.

    Raises
    ------
    ValueError : no split has rows of positive weight on both sides.
    """
    seen = np.ones(train.shape[1], bool) if without is None else train[without]
    honest = np.zeros_like(seen) if without is None else held[without]
    inside, outside = np.vstack([train & seen, seen]), np.vstack([held & seen, honest])
    use = (inside @ weight > 0) & (outside @ weight > 0)
    use[-1] = False
    if not use.any():
        raise ValueError(
            "No split of cv has rows of positive weight both to train on and to hold out. Give "
            "more rows, fewer folds, or sample_weight that is positive in more places."
        )
    return Folds(inside, outside, use / use.sum())


def find_nested_folds(train: np.ndarray, held: np.ndarray) -> list[int]:
    """Return the splits without whose held-out rows another split is left, ``[K, n]`` each.

    Of a split over time the first has none before it; a single split, and a split in two, none.
    """
    left = []
    for k, seen in enumerate(train):
        inside, outside = (train & seen).any(1), (held & seen).any(1)
        if np.any(inside & outside) and held[k].any():
            left.append(k)
    return left
