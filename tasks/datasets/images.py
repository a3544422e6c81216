"""Small images by name: seeded training, validation and test rows, pixels between 0 and 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from tasks.datasets.archives import read_arrays
from tasks.datasets.tables import ROOT, load

Rows = tuple[np.ndarray, np.ndarray]
Sizes = int | Mapping[int, int]


@dataclass(frozen=True)
class Pixels:
    """From rows as they come to rows of pixels: means over squares, in units of ``scale``.

    Parameters
    ----------
    side, pool : of an image, and of the squares that the mean is taken over.
    scale : the largest pixel.
    """

    side: int
    pool: int
    scale: float

    @property
    def inputs(self) -> int:
        """Number of pixels of an image as it comes."""
        return self.side**2

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return ``[n, (side / pool)^2]`` float32 for images ``[n, side^2]``."""
        small = self.side // self.pool
        pooled = X.reshape(-1, small, self.pool, small, self.pool).mean((2, 4)) / self.scale
        return pooled.reshape(len(X), small * small).astype(np.float32)


@dataclass(frozen=True)
class Images:
    """Three disjoint sets of rows.

    Parameters
    ----------
    train, validation, test : ``(X [n, d] float32, y [n] int32)``, classes numbered from 0.
    classes : their number.
    shape : of one image, rows then columns.
    source : where they came from.
    pixels : what made rows of the images.
    labels : what the class numbers stand for.
    """

    train: Rows
    validation: Rows
    test: Rows
    classes: int
    shape: tuple[int, int]
    source: str
    pixels: Pixels
    labels: tuple[str | int, ...]

    def notes(self) -> dict:
        """Return what to record with a result."""
        parts = {name: len(getattr(self, name)[1]) for name in ("train", "validation", "test")}
        return {"source": self.source, "rows": parts}


def images(
    data: str = "digits",
    *,
    train: Sizes,
    validation: Sizes = 0,
    test: int | None = None,
    pool: int = 1,
    root: str | None = None,
    seed: int = 0,
) -> Images:
    """Draw rows by ``numpy.random.RandomState(seed).permutation``: training, then validation.

    Parameters
    ----------
    data : ``"digits"`` (bundled with scikit-learn, 8 x 8), ``"mnist"`` (28 x 28, its own 10 000
        test images), or the path of an npz file with square images in the rows of ``X``.
    train, validation : numbers of rows; or both ``{class: number}``, which leaves the other classes
        out, and numbers those that stay 0, 1, ... in the order of ``train``.
    test : number of rows; ``None`` takes all that are left, or all test rows of the source's own.
    pool : mean over squares of so many pixels a side.
    root : folder of ``mnist.npz``, by default ``../shared/data`` beside the project.

    Raises
    ------
    ValueError : data that are not there or are no square images; more rows than there are.

    Examples
    --------
    >>> from tasks.datasets.images import images
    >>> images("digits", train=100, validation=50).test[0].shape
    (1647, 64)
    """
    X, y, own_test, source, known = _mnist(root) if data == "mnist" else _table(data, root)
    pixels = X[0].size
    side = int(np.sqrt(pixels))
    if side * side != pixels or side % pool:
        raise ValueError(
            f"{source}: rows of {pixels} numbers are no square images whose side pool={pool} "
            "divides."
        )
    scale = 255.0 if X.dtype == np.uint8 else float(np.max(np.abs(X))) or 1.0
    pixels, small = Pixels(side, pool, scale), side // pool
    kept = list(train) if isinstance(train, Mapping) else list(range(int(y.max()) + 1))
    order = np.random.RandomState(seed).permutation(len(y))

    def rows(X: np.ndarray, y: np.ndarray, chosen: np.ndarray) -> Rows:
        labels = np.array([kept.index(label) for label in y[chosen]], np.int32)
        return pixels(X[chosen]), labels

    of_classes = order[np.isin(y[order], kept)]
    fitted, left = _take("train", train, of_classes, y, source)
    held, left = _take("validation", validation, left, y, source)
    if own_test is not None:
        X_test, y_test = own_test
        left = np.flatnonzero(np.isin(y_test, kept))
    else:
        X_test, y_test = X, y
    tested, _ = _take("test", len(left) if test is None else test, left, y_test, source)
    return Images(
        rows(X, y, fitted),
        rows(X, y, held),
        rows(X_test, y_test, tested),
        len(kept),
        (small, small),
        source,
        pixels,
        tuple(known[label] for label in kept),
    )


def _take(
    name: str, size: Sizes, order: np.ndarray, y: np.ndarray, source: str
) -> tuple[np.ndarray, np.ndarray]:
    """Take the first rows of ``order``, so many in all or of each class; and the rest."""
    wanted = size if isinstance(size, Mapping) else {None: size}
    taken = np.zeros(len(order), bool)
    for label, count in wanted.items():
        of = "" if label is None else f" of class {label}"
        there = np.arange(len(order)) if label is None else np.flatnonzero(y[order] == label)
        if not 0 < count <= len(there) and not (name == "validation" and count == 0):
            raise ValueError(
                f"{name}={count} rows{of}: {source} has {len(there)}{of} left to take from. Only "
                "validation may be empty."
            )
        taken[there[:count]] = True
    return order[taken], order[~taken]


def cast(*arrays: np.ndarray) -> tuple:
    """Convert floats to JAX's current floating-point type, whole numbers to int32."""
    dtype = jnp.result_type(float)
    return tuple(jnp.asarray(x, dtype if x.dtype.kind == "f" else jnp.int32) for x in arrays)


def _mnist(root: str | None) -> tuple[np.ndarray, np.ndarray, Rows, str, tuple]:
    """Read MNIST as bytes: 70 000 images in float64 are 440 MB."""
    path = (Path(root) if root is not None else ROOT) / "mnist.npz"
    if not path.is_file():
        raise ValueError(
            f"data set 'mnist' is not here: {path} does not exist. Pass root=FOLDER with mnist.npz "
            "in it (x_train, y_train, x_test, y_test), or take data=digits, which is bundled."
        )
    file = read_arrays(path)
    train, test = (file["x_train"], file["y_train"]), (file["x_test"], file["y_test"])
    return *train, test, path.name, tuple(range(10))


def _table(data: str, root: str | None) -> tuple[np.ndarray, np.ndarray, Rows | None, str, tuple]:
    table = load(data, root, kind="classification")
    if table.test_rows is None:
        return table.X, table.y, None, table.source, table.labels
    kept = np.setdiff1d(np.arange(len(table.y)), table.test_rows)
    own = table.X[table.test_rows], table.y[table.test_rows]
    return table.X[kept], table.y[kept], own, table.source, table.labels
