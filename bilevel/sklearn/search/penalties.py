"""Which coefficients share a penalty, as scikit-learn's users say it."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

UNPENALISED = -1000.0  # logarithm of a penalty that is 0, whatever is added to it


class ColumnPenalties(NamedTuple):
    """The group of each of d columns, numbered from 0, and the logarithms of their factors.

    The penalty of a column is that of its group times its factor; ``offset`` of a column without
    penalty is :data:`UNPENALISED`.
    """

    groups: np.ndarray
    offset: np.ndarray

    @property
    def single(self) -> bool:
        """Whether there is one penalty, the same for all columns."""
        return self.groups.max() == 0 and not self.offset.any()

    def free(self, bounds: np.ndarray) -> np.ndarray:
        """Return bounds ``[k d, 2]`` that hold no column without penalty in the way of others."""
        none = np.tile(self.offset == UNPENALISED, len(bounds) // len(self.offset))
        return np.where(none[:, None], [10 * UNPENALISED, 0.75 * UNPENALISED], bounds)


def group_columns(
    penalty: str | ArrayLike | Mapping, d: int, names: np.ndarray | None = None
) -> ColumnPenalties:
    """Return who shares a penalty with whom, and factors.

    ``penalty`` is ``"global"``, ``"per_feature"``, one label per column, or a mapping from column
    names (patterns as of a shell) or numbers to a label of a group, to a factor of the common
    penalty, or to 0 for none; columns that it does not name have the common penalty.

    Raises
    ------
    ValueError : another number of labels than columns; a name that no column has; no column left.
    """
    if isinstance(penalty, Mapping):
        return _read_mapping(penalty, d, names)
    if isinstance(penalty, str) and penalty == "global":
        return ColumnPenalties(np.zeros(d, int), np.zeros(d))
    if isinstance(penalty, str) and penalty == "per_feature":
        return ColumnPenalties(np.arange(d), np.zeros(d))
    labels = np.asarray(penalty, object)  # beside text, NaN would become text
    if labels.shape != (d,):
        raise ValueError(
            f"penalty must hold one group label per column of X: X has {d} features, penalty has "
            f"shape {labels.shape}."
        )
    missing = [k for k, label in enumerate(labels.tolist()) if label is None or label != label]
    if missing:
        raise ValueError(
            f"The group label of column {missing[0]} is missing ({labels[missing[0]]}), and so are "
            f"{len(missing) - 1} others. Give every column a label."
        )
    return ColumnPenalties(_number_labels(np.asarray(labels.tolist())), np.zeros(d))


def _number_labels(labels: np.ndarray) -> np.ndarray:
    """Number labels from 0 in order of appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.empty(len(first), int)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse.ravel()]


def _read_mapping(penalty: Mapping, d: int, names: np.ndarray | None) -> ColumnPenalties:
    labels, offset = np.full(d, "common:", object), np.zeros(d)
    for key, value in penalty.items():
        if isinstance(key, str) and names is not None:
            found = [j for j, name in enumerate(names) if fnmatchcase(str(name), key)]
        else:
            found = [int(key)] if isinstance(key, Integral) and 0 <= int(key) < d else []
        if not found:
            known = "X has no column names" if names is None else f"the columns are {list(names)}"
            raise ValueError(
                f"penalty names {key!r}, which is no column of X: {known}, numbers from 0 to "
                f"{d - 1}. Give the name of a column, a pattern such as 'gene*', or its number."
            )
        if isinstance(value, str):
            labels[found] = f"group:{value}"
        elif isinstance(value, Real) and 0 <= float(value) < np.inf:
            offset[found] = np.log(float(value)) if value else UNPENALISED
        else:
            raise ValueError(
                f"penalty[{key!r}] must be a group label, or a factor of the common penalty that "
                f"is 0 or positive, got {value!r}."
            )
    free = offset == UNPENALISED
    if free.all():
        raise ValueError("penalty leaves no column with a penalty: nothing is tuned.")
    groups = np.zeros(d, int)
    groups[~free] = _number_labels(labels[~free].astype(str))
    return ColumnPenalties(groups, offset)


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
