"""Which coefficients share a penalty, as scikit-learn's users say it."""

import numpy as np
from numpy.typing import ArrayLike


def group_columns(penalty: str | ArrayLike, d: int) -> np.ndarray:
    """Return the group of each of ``d`` columns, numbered from 0 in order of appearance.

    ``penalty`` is ``"global"``, ``"per_feature"``, or one label per column.

    Raises
    ------
    ValueError : another number of labels than columns.
    """
    if isinstance(penalty, str) and penalty == "global":
        return np.zeros(d, int)
    if isinstance(penalty, str) and penalty == "per_feature":
        return np.arange(d)
    labels = np.asarray(penalty)
    if labels.shape != (d,):
        raise ValueError(
            f"penalty must hold one group label per column of X: X has {d} features, penalty has "
            f"shape {labels.shape}."
        )
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), int)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.ravel()]


def make_stages(groups: np.ndarray, length: int) -> list[np.ndarray]:
    """Return one group for all, then the groups; columns padded into the first."""
    padded = np.zeros(length, int)
    padded[: len(groups)] = groups
    return [np.zeros(length, int)] if groups.max() == 0 else [np.zeros(length, int), padded]


def share_in_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the geometric mean of positive ``values [d]`` over each one's group, ``[d]``."""
    return np.exp((np.bincount(groups, np.log(values)) / np.bincount(groups))[groups])


def check_alphas(alphas: ArrayLike) -> np.ndarray:
    """Return penalties of a grid as an array, largest first.

    Raises
    ------
    ValueError : there is none, or one is not a positive number.
    """
    found = np.sort(np.asarray(alphas, np.float64).ravel())[::-1]
    if not found.size or not np.all(np.isfinite(found)) or np.any(found <= 0):
        raise ValueError(f"alphas must be positive and finite, got {alphas!r}.")
    return found


def make_log_bounds(scale: ArrayLike, length: int, lowest: float = -10) -> np.ndarray:
    """Bound every penalty, ``[length, 2]``: between ``10**lowest`` and 1e8 times its ``scale``."""
    middle = np.broadcast_to(np.log(scale), length)[:, None]
    return middle + np.log(10.0) * np.array([lowest, 8.0])


def make_spectral_grid(extremes: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return logarithms of the penalties to try, largest first, and the bounds of the search.

    ``extremes``: the smallest and the largest curvature of the data. One direction goes from free
    to shrunk over a factor of about 10 in the penalty, so two points in each factor of e see every
    minimum; beyond the bounds the fit differs from its limit by less than 1e-6.
    """
    low, high = np.log(extremes)
    bounds = np.array([low - np.log(1e6), high + np.log(1e8)])
    first, last = high + np.log(1e4), low - np.log(1e4)
    return np.linspace(first, last, 1 + int(np.ceil((first - last) * 2))), bounds
