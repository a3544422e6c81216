"""Which rows train, which validate, which test: seeded, in proportion to the classes."""

import hashlib
from dataclasses import dataclass

import numpy as np

from tasks.datasets.tables import Table


@dataclass(frozen=True)
class Split:
    """Row numbers; ``development`` is what a model may see: training and validation together."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def development(self) -> np.ndarray:
        """Training rows, then validation rows."""
        return np.concatenate([self.train, self.validation])

    @property
    def digest(self) -> str:
        """A name for this split, to be recorded: equal row numbers, equal digest."""
        parts = (self.train, self.validation, self.test)
        return hashlib.sha256(b"|".join(p.astype("<i8").tobytes() for p in parts)).hexdigest()[:16]


def split(table: Table, *, validation: float, test: float, seed: int, rows: int | None) -> Split:
    """Deal out the rows at random; the source's own test rows, where it has them, stay test rows.

    Parameters
    ----------
    validation, test : a share of all rows below 1, or a number of rows.
    table : its ``groups``, where it has them, are dealt out whole, without regard to classes.
    seed : of ``numpy.random.RandomState``, whose permutation is dealt out in the order training,
        validation, test; classes are dealt out one by one, so that each part has its share of each.
    rows : use so many rows only, chosen at random.

    Raises
    ------
    ValueError : shares that leave a part empty.
    """
    order = np.random.RandomState(seed).permutation(len(table.y))
    if rows is not None:
        order = _some(order, rows, len(table.y))
    fixed = np.isin(order, () if table.test_rows is None else table.test_rows)
    dealt, total = order[~fixed], len(order)
    for name, size in (("validation", validation), ("test", test)):
        if not 0 < size < total or (size >= 1 and size != round(size)):
            raise ValueError(
                f"{name}={size} must be a share of the rows between 0 and 1, or a number of rows "
                f"below the {total} there are."
            )
    shares = [size if size < 1 else size / total for size in (validation, test)]
    if fixed.any():
        shares[1] = 0.0
    if table.groups is not None:
        result = Split(*_deal_groups(table.groups[order], order, shares))
        return _checked(result, table, validation, test)
    strata = table.y[dealt] if table.classes else np.zeros(len(dealt), int)
    parts: tuple[list, list, list] = ([], [], [])
    for label in np.unique(strata):
        members = dealt[strata == label]
        held = [round(share * len(members)) for share in shares]
        edges = np.cumsum([len(members) - sum(held), held[0]])
        for part, chosen in zip(parts, np.split(members, np.maximum(edges, 0)), strict=True):
            part.append(chosen)
    train, val, tested = (np.concatenate(part) for part in parts)
    result = Split(train, val, order[fixed] if fixed.any() else tested)
    return _checked(result, table, validation, test)


def _deal_groups(
    groups: np.ndarray, order: np.ndarray, shares: list[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal out whole groups, in the order of their first rows, until each part has its share."""
    _, first, of = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[of]  # of each row's group, in random order
    before = np.concatenate([[0], np.cumsum(np.bincount(rank))])
    # A group belongs to where its middle row would be dealt.
    middle = (before[:-1] + before[1:])[rank] / 2 / len(order)
    tested, held = middle >= 1 - shares[1], middle >= 1 - sum(shares)
    return order[~held], order[held & ~tested], order[tested]


def _checked(result: Split, table: Table, validation: float, test: float) -> Split:
    total = sum(len(part) for part in (result.development, result.test))
    for name in ("train", "validation", "test"):
        if len(getattr(result, name)) < 2:
            raise ValueError(
                f"validation={validation} and test={test} of {total} rows leave "
                f"{len(getattr(result, name))} rows for {name}: each part needs at least 2."
            )
    if table.classes and len(absent := set(range(len(table.classes))) - set(table.y[result.train])):
        raise ValueError(
            f"no training row has the label {table.classes[min(absent)]!r}: leave more rows for "
            f"training than validation={validation} and test={test} do."
        )
    return result


def _some(order: np.ndarray, rows: int, total: int) -> np.ndarray:
    if not 2 <= rows <= total:
        raise ValueError(f"rows={rows} must lie between 2 and the {total} rows that there are.")
    return order[:rows]


def set_aside(
    batch: tuple[np.ndarray, ...], share: float, folds: int | None
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...] | None]:
    """Set every k-th validation row aside, so that each class has its share: ``(kept, aside)``.

    Raises
    ------
    ValueError : folds, in which every row validates once; a share that leaves a part empty.
    """
    if share == 0:
        return batch, None
    if folds is not None:
        raise ValueError(
            "A second validation part for early stopping needs outer=holdout: with folds every row "
            "validates already, and none is left."
        )
    counted = np.floor(np.arange(len(batch[0]) + 1) * share)
    aside = np.diff(counted) > 0
    if not 0 < share < 1 or min(aside.sum(), (~aside).sum()) < 2:
        raise ValueError(
            f"second={share} of {len(aside)} validation rows must be a share between 0 and 1 that "
            "leaves both parts at least 2 rows."
        )
    return tuple(x[~aside] for x in batch), tuple(x[aside] for x in batch)


def deal(
    y: np.ndarray, folds: int, *, stratify: bool, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the fold that validates each row, ``[n]``, ``0 .. folds - 1``; even in each class.

    With ``groups`` a group lies in one fold: the largest first, each in the smallest fold. Rows
    are dealt in the order that they come in, which a :class:`Split` has made random.

    Raises
    ------
    ValueError : fewer than two folds, or more folds than rows or groups.
    """
    if not 2 <= folds <= len(y):
        raise ValueError(f"folds={folds} must lie between 2 and the {len(y)} rows to divide.")
    if groups is not None:
        _, of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if len(sizes) < folds:
            raise ValueError(f"folds={folds}, but there are {len(sizes)} groups to divide.")
        total, chosen = np.zeros(folds, int), np.empty(len(sizes), int)
        for group in np.argsort(-sizes, kind="stable"):
            chosen[group] = np.argmin(total)
            total[chosen[group]] += sizes[group]
        return chosen[of]
    order = np.argsort(y if stratify else np.zeros(len(y)), kind="stable")
    fold = np.empty(len(y), int)
    fold[order] = np.arange(len(y)) % folds
    return fold
