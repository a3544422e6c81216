"""Which coefficients share a penalty, as scikit-learn's users say it."""

from collections.abc import Sequence

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


def make_log_bounds(scale: float, length: int, lowest: float = -10) -> np.ndarray:
    """Bound every penalty, ``[length, 2]``: between ``10**lowest`` and 1e8 times ``scale``."""
    return np.tile(np.log(scale) + np.log(10.0) * np.array([lowest, 8.0]), (length, 1))


def make_log_grid(
    alphas: ArrayLike | None,
    scale: float,
    usual: Sequence[float] | np.ndarray,
    about: int,
    lowest: float = -7,
) -> np.ndarray:
    """Return logarithms of the penalties to try, largest first.

    The given ones; or those of scikit-learn's own tool, and ``about`` many from ``10**lowest`` to
    100 times ``scale``, the curvature of the loss along a mean column.
    """
    if alphas is None:
        alphas = np.concatenate([scale * np.logspace(lowest, 2, about), usual])
    alphas = np.asarray(alphas, np.float64).ravel()
    if not alphas.size or not np.all(np.isfinite(alphas)) or np.any(alphas <= 0):
        raise ValueError(f"alphas must be positive and finite, got {alphas!r}.")
    return np.log(np.sort(alphas))[::-1]
