"""Tables that are mostly zero: read, weighted and batched without ever being filled in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from tasks.datasets import files
from tasks.datasets.archives import read_arrays
from tasks.datasets.tables import BUNDLED, ROOT, SHARED, Table, checked, load

COUNTS = {"newsgroups20": "newsgroups20_counts.npz"}
PARTS = ("data", "indices", "indptr", "shape")
WEIGHTINGS = ("tfidf", "scale")
CSR = Any  # scipy's own class, of whose attributes a type checker knows too little


def csr(*arrays: Any, **settings: Any) -> CSR:
    """Return a ``scipy.sparse.csr_matrix``."""
    return sp.csr_matrix(*arrays, **settings)


@dataclass(frozen=True)
class Rows:
    """The entries of each row, padded: column numbers and values, both ``[n, K]``."""

    index: np.ndarray
    value: np.ndarray

    @classmethod
    def from_matrix(cls, X: CSR, width: int) -> "Rows":
        """Pad the rows of a matrix to ``width`` entries; what pads has the value 0."""
        lengths = np.diff(X.indptr)
        place = np.arange(width) < lengths[:, None]
        index, value = np.zeros((X.shape[0], width), np.int32), np.zeros((X.shape[0], width))
        index[place], value[place] = X.indices, X.data
        return cls(index, value)


def read(data: str, root: str | None = None) -> Table:
    """Read a classification set whose ``X`` is a scipy CSR matrix.

    Parameters
    ----------
    data : ``newsgroups20`` (needs ``root``); the path of an npz with CSR arrays ``X_data,
        X_indices, X_indptr, X_shape`` and ``y``, or the same of ``X_train`` and ``X_test`` with
        ``y_train`` and ``y_test``; or any set that :func:`tasks.datasets.tables.load` knows.

    Raises
    ------
    ValueError : no such set, arrays that are no CSR matrix, labels that cannot be told apart.
    """
    path = (Path(root) if root is not None else ROOT) / COUNTS[data] if data in COUNTS else None
    if path is None and data.endswith(".npz") and data not in BUNDLED | SHARED:
        path = Path(data)
    if path is None:
        table = load(data, root, kind="classification")
        return Table(
            csr(table.X),
            table.y,
            table.feature_names,
            table.classes,
            table.source,
            table.test_rows,
            table.notes,
            labels=table.labels,
        )
    if not path.is_file():
        raise ValueError(
            f"data set {data!r} is not here: there is no {path}. Pass root=FOLDER with it, the "
            f"path of a CSR file of your own, or a bundled set: {', '.join(BUNDLED)}."
        )
    arrays = read_arrays(path)
    two = "X_train_data" in arrays
    X = [_csr(arrays, part, path) for part in (("X_train", "X_test") if two else ("X",))]
    y = np.concatenate([arrays["y_train"], arrays["y_test"]]) if two else arrays.get("y")
    whole = csr(sp.vstack(X))
    if y is None or len(y) != whole.shape[0]:
        raise ValueError(f"{path}: expected one label in y for each of {whole.shape[0]} rows.")
    if "target_names" in arrays:
        y = arrays["target_names"][y]
    test_rows = np.arange(X[0].shape[0], whole.shape[0]) if two else None
    names = [str(j) for j in range(whole.shape[1])]
    raw = files.Raw(y, names, path.name, whole, test_rows=test_rows)
    return checked(raw, "classification")


def read_rows(path: Path) -> Any:
    """Return the rows of an npz without labels: an array ``X``, or CSR arrays ``X_data, ...``.

    Raises
    ------
    ValueError, OSError : neither is there.
    """
    arrays = read_arrays(path)
    return arrays["X"] if "X" in arrays else _csr(arrays, "X", path)


def _csr(arrays: dict[str, np.ndarray], name: str, path: Path) -> CSR:
    if missing := [f"{name}_{part}" for part in PARTS if f"{name}_{part}" not in arrays]:
        raise ValueError(
            f"{path} holds {', '.join(arrays)}: expected the CSR arrays {name}_data, "
            f"{name}_indices, {name}_indptr and {name}_shape ({', '.join(missing)} are missing)."
        )
    values, indices, pointers, shape = (arrays[f"{name}_{part}"] for part in PARTS)
    try:
        X = csr((values.astype(float), indices, pointers), shape=tuple(shape))
        X.check_format()
    except ValueError as error:
        raise ValueError(f"{path}: {name} is no CSR matrix: {error}.") from error
    if not np.all(np.isfinite(X.data)):
        raise ValueError(f"{path}: {name} has missing or infinite entries. Leave them out.")
    X.sum_duplicates()
    return X


def common(X: CSR, least: int) -> np.ndarray:
    """Return the columns that at least ``least`` rows use.

    Raises
    ------
    ValueError : there is none.
    """
    kept = np.flatnonzero(np.bincount(X.indices[X.data != 0], minlength=X.shape[1]) >= least)
    if not kept.size:
        raise ValueError(f"min_rows={least}: no column is used by so many of {X.shape[0]} rows.")
    return kept


@dataclass(frozen=True)
class Words:
    """From rows as they come to rows in common units, by what training rows say of columns.

    Parameters
    ----------
    kept : the columns that are used.
    factors : of each of them.
    how : one of :data:`WEIGHTINGS`.
    width : entries of a row at most, its largest; ``None`` keeps all.
    inputs : number of columns as they come.
    """

    kept: np.ndarray
    factors: np.ndarray
    how: str
    width: int | None
    inputs: int

    def __call__(self, X: Any) -> CSR:
        """Return the rows in common units, ``[n, len(kept)]``."""
        X = csr(csr(X)[:, self.kept])
        X.eliminate_zeros()
        if self.how == "tfidf":
            if X.data.size and X.data.min() < 0:
                raise ValueError(
                    "weighting='tfidf' is for counts: an entry is negative. Use 'scale'."
                )
            X.data = 1 + np.log(X.data)
        X = csr(X @ sp.diags(self.factors))
        if self.how == "tfidf":
            lengths = np.sqrt(np.asarray(X.multiply(X).sum(1)).ravel())
            X = csr(sp.diags(1 / np.where(lengths > 0, lengths, 1)) @ X)
        X.sort_indices()
        return X if self.width is None else largest(X, self.width)[0]


def weighted(X: CSR, train: np.ndarray, how: str) -> CSR:
    """Scale entries to units in which one penalty is fair, by what the ``train`` rows say.

    ``"tfidf"``, for counts: ``(1 + log count) (1 + log (1 + n) / (1 + rows with the column))``,
    rows of length 1; scikit-learn's ``TfidfTransformer(sublinear_tf=True)``. ``"scale"``: columns
    divided by their root mean square. Nothing is centred: zeros stay zeros.

    Raises
    ------
    ValueError : another word; negative entries for ``"tfidf"``.
    """
    return find_units(X, train, how, np.arange(X.shape[1]))(X)


def find_units(X: CSR, train: np.ndarray, how: str, kept: np.ndarray) -> Words:
    """Learn the units of the columns ``kept`` of ``X`` from its ``train`` rows.

    Raises
    ------
    ValueError : another word.
    """
    if how not in WEIGHTINGS:
        raise ValueError(f"weighting={how!r} must be one of {', '.join(WEIGHTINGS)}.")
    seen = csr(csr(X)[train][:, kept])
    seen.eliminate_zeros()
    if how == "scale":
        squares = np.asarray(seen.multiply(seen).mean(0)).ravel()
        factors = 1 / np.sqrt(np.where(squares > 0, squares, 1))
    else:
        used = np.bincount(seen.indices, minlength=len(kept))
        factors = 1 + np.log((1 + len(train)) / (1 + used))
    return Words(kept, factors, how, None, X.shape[1])


def largest(X: CSR, width: int | None) -> tuple[CSR, int, float]:
    """Keep each row's ``width`` largest entries; also the width, and the share of squares kept.

    Raises
    ------
    ValueError : a width below 1.
    """
    if width is not None and width < 1:
        raise ValueError(f"width={width} must be a positive number of entries, or null for all.")
    longest = int(np.diff(X.indptr).max())
    if width is None or width >= longest:
        return X, longest, 1.0
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    order = np.lexsort((-np.abs(X.data), rows))
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order)) - X.indptr[rows[order]]
    keep = rank < width
    less = csr((X.data[keep], (rows[keep], X.indices[keep])), shape=X.shape)
    return less, width, float(np.sum(less.data**2) / np.sum(X.data**2))
