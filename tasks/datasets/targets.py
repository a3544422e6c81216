"""What a table's target holds: a quantity or classes, and what is to be said of it."""

from dataclasses import replace
from typing import Any

import numpy as np

from tasks.datasets import files


def drop_unlabelled(raw: files.Raw) -> files.Raw:
    """Return the rows of a table whose target is known; a remark says how many are not."""
    if raw.frame is None:
        return raw
    known = np.array([entry is not None and entry == entry and entry != "" for entry in raw.y])
    if known.all() or not known.any():
        return raw
    said = f"{(~known).sum()} rows without {raw.target!r} left out, the first is "
    kept = np.flatnonzero(known)
    return replace(
        raw,
        y=raw.y[known],
        frame=raw.frame[known].reset_index(drop=True),
        groups=None if raw.groups is None else raw.groups[known],
        row=lambda i: raw.row(int(kept[i])),
        notes=(*raw.notes, said + raw.row(int(np.argmin(known)))),
    )


def read_quantity(raw: files.Raw) -> np.ndarray:
    cure = f"If {raw.target!r} holds classes, use task=logistic: this task predicts a quantity."
    y = files.numbers(raw.y, raw.target, raw.source, raw.row, cure)
    if np.ptp(y) == 0:
        raise ValueError(
            f"{raw.source}: the target {raw.target!r} is {y[0]:g} in all {len(y)} rows: there "
            "is nothing to predict. Is it the right column?"
        )
    return y


def remark_counts(target: str, y: np.ndarray) -> list[str]:
    """Return a remark where the target seems to count something: skewed, from 0 on, integers."""
    integers = len(y) >= 20 and bool((y >= 0).all() and (y == np.round(y)).all())
    if not (integers and np.unique(y).size > 2 and y.min() <= 1 and y.mean() < 20):
        return []
    return [
        f"the target {target!r} seems to hold counts; squared errors take all of them for equally "
        "certain. A Poisson model suits counts: scikit-learn's PoissonRegressor, or task=custom"
    ]


def read_classes(raw: files.Raw) -> tuple[np.ndarray, tuple[str, ...], tuple[Any, ...]]:
    """Return class numbers, their names, and the labels as they were."""
    if raw.y.dtype.kind in "biuf":
        values = files.numbers(raw.y, raw.target, raw.source, raw.row)
        labels, y, counts = np.unique(values, return_inverse=True, return_counts=True)
        names = tuple(f"{label:g}" for label in labels)
        labels = labels.astype(raw.y.dtype)
    else:
        if missing := [i for i, label in enumerate(raw.y) if label is None or label == ""]:
            raise ValueError(
                f"{raw.source}: {len(missing)} rows have no label in {raw.target!r}, the first is "
                f"{raw.row(missing[0])}. Drop those rows."
            )
        labels, y, counts = np.unique(raw.y.astype(str), return_inverse=True, return_counts=True)
        names = tuple(str(label) for label in labels)
    if len(names) == 1:
        raise ValueError(
            f"{raw.source}: every row of {raw.target!r} has the label {names[0]!r}: there is "
            "nothing to tell apart. Is it the right column?"
        )
    if (rare := np.flatnonzero(counts < 3)).size:
        raise ValueError(
            f"{raw.source}: {rare.size} of the {len(names)} labels in {raw.target!r} have fewer "
            f"than 3 rows, for example {names[rare[0]]!r}: training, validation and test each need "
            "one. If it is a quantity rather than a class, use a regression task (task=ridge)."
        )
    return y.astype(np.int32), names, tuple(labels.tolist())
