"""Folds as weights: every split is a pair of rows of weights, so that shapes never differ."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, check_cv


class Folds(NamedTuple):
    """The folds of one problem: which rows ``train``, which are ``held`` out, boolean ``[F, n]``.

    ``share [F]`` weighs the folds in the outer loss and sums to 1. The last row is no fold: it
    trains on all rows of the problem, and holds out what the problem itself must not see, if any.
    """

    train: np.ndarray
    held: np.ndarray
    share: np.ndarray


def splits(
    cv: Any, X: Any, y: Any, groups: Any, *, classifier: bool, random_state: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Which rows each split trains on and holds out, boolean ``[K, n]`` each."""
    if cv is None or isinstance(cv, int):
        cv = 5 if cv is None else cv
        if random_state is not None:
            kind = StratifiedKFold if classifier and np.ndim(y) == 1 else KFold
            cv = kind(cv, shuffle=True, random_state=random_state)
    splitter: Any = check_cv(cv, y, classifier=classifier)
    pairs = list(splitter.split(X, y, groups))
    train, held = np.zeros((2, len(pairs), X.shape[0]), bool)
    for k, (inside, outside) in enumerate(pairs):
        train[k, inside], held[k, outside] = True, True
    return train, held


def problem(
    train: np.ndarray, held: np.ndarray, weight: np.ndarray, without: int | None = None
) -> Folds:
    """All splits as one problem; ``without=k``: the same, blind to what split k holds out.

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
