"""Which coefficients share a penalty, and the penalties' names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from tasks.datasets.features import Features

Groups = str | Mapping[str, Sequence[str]] | Sequence[Sequence[str]]
NAMED = ("global", "per_feature", "per_input", "by_degree")


@dataclass(frozen=True)
class Penalty:
    r"""Log-penalties ``hyper`` to one strength per column, ``exp(hyper)[groups]``.

    Parameters
    ----------
    names : of the entries of ``hyper``.
    groups : the entry that each column uses, ``[d]``; ``None`` where ``exp(hyper)`` is the answer
        itself: a scalar, or one entry per column.
    """

    names: tuple[str, ...]
    groups: tuple[int, ...] | None = None

    def __call__(self, hyper: Array) -> Array:
        """Return strengths, ``()`` or ``[d]``."""
        strengths = jnp.exp(hyper)
        return strengths if self.groups is None else strengths[np.array(self.groups)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``hyper``: ``()`` for one penalty, else as many as there are names."""
        return () if len(self.names) == 1 else (len(self.names),)

    @classmethod
    def from_columns(cls, spec: Groups, features: Features) -> "Penalty":
        """Read which columns share a penalty.

        Parameters
        ----------
        spec : ``"global"``, one penalty; ``"per_feature"``, one per column of the design matrix;
            ``"per_input"``, one per raw column (levels of a category share theirs), one for all
            squares and one for all products;
            ``"by_degree"``, one each for raw columns, squares and products; or groups of column
            names, a list of lists or a dict, where names may be patterns such as ``"*^2"`` and the
            first group that fits a column has it.

        Raises
        ------
        ValueError : an unknown word; a column in no group; a pattern that fits no column.
        """
        if spec == "global":
            return cls(("all",))
        if spec == "per_feature":
            return cls(features.names)
        if spec == "per_input":
            return _grouped([_by_input(features, powers) for powers in features.powers])
        if spec == "by_degree":
            return _grouped([_degree(p) for _, p in _columns(features)])
        if isinstance(spec, str) or not isinstance(spec, Mapping | Sequence):
            raise ValueError(
                f"penalty={spec!r} must be one of {', '.join(NAMED)}, or groups of column names: "
                "[[age, sex], ['*']] or {person: [age, sex], rest: ['*']}."
            )
        return _grouped(_assign(spec, features))


def _columns(features: Features) -> Any:
    return zip(features.names, features.powers, strict=True)


def _degree(powers: np.ndarray) -> str:
    return "columns" if powers.sum() == 1 else "squares" if powers.max() == 2 else "products"


def _by_input(features: Features, powers: np.ndarray) -> str:
    return features.inputs[int(powers.argmax())] if powers.sum() == 1 else _degree(powers)


def _grouped(labels: list[str]) -> Penalty:
    """Return the penalty whose groups are the distinct labels, in order of appearance."""
    names = tuple(dict.fromkeys(labels))
    if len(names) == 1:
        return Penalty(names)
    return Penalty(names, tuple(names.index(label) for label in labels))


def _assign(spec: Mapping | Sequence, features: Features) -> list[str]:
    """Return the group of each column, by the first pattern that fits."""
    if not isinstance(spec, Mapping):
        spec = {f"group {i}": patterns for i, patterns in enumerate(spec)}
    pairs = [(group, pattern) for group, patterns in spec.items() for pattern in patterns]
    for group, pattern in pairs:
        if not any(_fits(name, pattern) for name in features.names):
            raise ValueError(
                f"penalty: {pattern!r} of {group!r} fits no column. Columns are "
                f"{_some(features.names)}; left out as constant or duplicate: "
                f"{_some(features.dropped) or 'none'}."
            )
    labels = [
        next((group for group, pattern in pairs if _fits(name, pattern)), None)
        for name in features.names
    ]
    if lonely := [n for n, label in zip(features.names, labels, strict=True) if label is None]:
        raise ValueError(
            f"penalty: {len(lonely)} columns are in no group: {_some(lonely)}. Add a last group "
            "['*'] for the rest."
        )
    return [str(label) for label in labels]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def describe(penalty: Penalty, hyper: Any) -> dict[str, float]:
    """Return penalties in natural units: each by name, or their spread where there are many."""
    values = np.exp(np.asarray(hyper, np.float64)).ravel()
    if values.size <= 20:
        names = ["penalty"] if values.size == 1 else [f"penalty of {n}" for n in penalty.names]
        return dict(zip(names, values.tolist(), strict=True))
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return {"smallest penalty": low, "median penalty": middle, "largest penalty": high}
