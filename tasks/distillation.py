r"""Data set distillation: a few synthetic images on which ridge regression learns as on all.

    inner(A, S) = 1/2 <A, (S S^T + lam I) A> - <A, T>      weights W = S^T A, of m synthetic rows
    outer(A, S) = 1/2 mean_i |x_i S^T A - t_i|^2           real rows, targets one-hot minus 1/C

The inner problem is the dual of ``|S W - T|^2 + lam |W|^2``: it has m C unknowns, not d C. Wang,
Zhu, Torralba, Efros, 2018; with a ridge head: Bohdal, Yang, Hospedales, 2020; Nguyen, Chen, Lee,
ICLR 2021.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.cluster import KMeans

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.images import Images, cast, images
from tasks.models.rows import RowsClassifier
from tasks.parts.moments import in_float64

DRAWS = 100


def targets(y: np.ndarray, classes: int) -> np.ndarray:
    """Return one-hot rows less ``1/C``, ``[n, C]``."""
    return np.eye(classes)[y] - 1 / classes


@dataclass(frozen=True)
class Dual:
    """The ridge fit to the m synthetic rows in dual form; a batch is ``(i, T)``, targets of rows i.

    ``hyper["labels"] [m, C]``, where there are any, take the place of ``T``.
    """

    penalty: float

    def __call__(self, A: Array, hyper: PyTree, batch: Any) -> Array:
        i, T = batch
        T = hyper["labels"][i] if "labels" in hyper else T
        rows = jnp.sum(self.penalty * A[i] ** 2 / 2 - A[i] * T, axis=1)
        return jnp.sum((hyper["images"].T @ A) ** 2) / 2 + len(A) * jnp.mean(rows)


def squared_error(A: Array, hyper: PyTree, batch: Any) -> Array:
    """Return half the mean squared error on the real rows ``(X [n, d], T [n, C])``."""
    X, T = batch
    return jnp.mean(jnp.sum((X @ (hyper["images"].T @ A) - T) ** 2, axis=1)) / 2


def distillation(
    data: str = "digits",
    *,
    per_class: int = 1,
    labels: bool = False,
    penalty: float = 1e-2,
    train: int = 1200,
    test: int | None = None,
    pool: int = 1,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of synthetic images (and labels, if asked) that stand for all training rows.

    Parameters
    ----------
    data, train, test, pool, root, seed : as for :func:`tasks.datasets.images.images`.
    per_class : synthetic images of each class; the start is so many real ones.
    labels : learn the targets of the synthetic images too.
    penalty : of the ridge head; rows are centred and have a mean square norm of 1.

    Notes
    -----
    The outer loss is that of the training rows, ``train_loss`` in the table; ``test_error`` is of
    the class with the largest output.

    Raises
    ------
    ValueError : bad data or sizes, a class of which there are too few rows to start from.

    Examples
    --------
    >>> from tasks.distillation import distillation
    >>> distillation("digits").hyper["images"].shape
    (10, 64)
    """
    parts = images(data, train=train, test=test, pool=pool, root=root, seed=seed)
    judge = _Judge(parts, penalty)
    classes = np.repeat(np.arange(parts.classes), per_class)
    S, T = judge.some(per_class, np.random.RandomState(seed)), targets(classes, parts.classes)
    hyper = dict(zip(("images", "labels"), cast(S, T), strict=True))
    fixed = hyper["labels"] if labels else hyper.pop("labels")
    return Task(
        name=f"distillation {data}",
        problem=bl.Problem(Dual(penalty), squared_error, quadratic=True),
        data=bl.Data(inner=(jnp.arange(len(T)), fixed), outer=cast(judge.X, judge.T)),
        hyper=hyper,
        params=jnp.zeros_like(fixed),
        metrics=lambda hyper, _: judge.score(hyper["images"], hyper.get("labels", T)),
        baselines=lambda: judge.baselines(per_class, T, seed),
        describe=lambda hyper: {"root mean square pixel": float(np.std(hyper["images"]))},
        exact=partial(in_float64(_exact), (penalty, T, judge.X, judge.T)),
        model=lambda hyper, _: judge.model(hyper["images"], hyper.get("labels", T)),
        notes=parts.notes() | {"synthetic_rows": len(classes)},
        picture=partial(_picture, judge, S),
    )


@jax.jit  # here, that tasks of the same shapes compile it once
def _exact(known: tuple[Array, ...], hyper: PyTree) -> Any:
    """Return the outer loss at the exact inner minimiser, and its gradient."""
    penalty, T, *rows = known

    def value(hyper: PyTree) -> Array:
        S = hyper["images"]
        system = S @ S.T + penalty * jnp.eye(len(S))
        return squared_error(jnp.linalg.solve(system, hyper.get("labels", T)), hyper, rows)

    return jax.value_and_grad(value)(hyper)


class _Judge:
    """Ridge heads fitted to a few rows, in float64, on training rows and test rows."""

    def __init__(self, parts: Images, penalty: float) -> None:
        self.parts, self.penalty = parts, penalty
        X, y = parts.train
        self.centre = X.mean(0, dtype=float)
        self.scale = float(np.sqrt(np.mean(np.sum((X - self.centre) ** 2, axis=1))))
        self.X, self.T = self.standardised(X), targets(y, parts.classes)

    def standardised(self, X: np.ndarray) -> np.ndarray:
        """Return rows around the training mean; the mean square norm of training rows is 1."""
        return (X - self.centre) / self.scale

    def some(self, per_class: int, rng: np.random.RandomState) -> np.ndarray:
        """Draw training rows at random, ``per_class`` of each class, by class."""
        members = [np.flatnonzero(self.parts.train[1] == c) for c in range(self.parts.classes)]
        if (fewest := min(map(len, members))) < per_class:
            raise ValueError(
                f"per_class={per_class}: one class has only {fewest} training rows to start from."
            )
        chosen = [rng.choice(rows, per_class, replace=False) for rows in members]
        return self.X[np.concatenate(chosen)]

    def fit(self, S: Any, T: Any) -> np.ndarray:
        """Return the ridge head ``[d, C]`` of the rows ``S`` with targets ``T``."""
        S, T = np.asarray(S, float), np.asarray(T, float)
        few = len(S) < S.shape[1]  # the dual system is smaller
        system = (S @ S.T if few else S.T @ S) + self.penalty * np.eye(min(S.shape))
        return S.T @ np.linalg.solve(system, T) if few else np.linalg.solve(system, S.T @ T)

    def model(self, S: Any, T: Any) -> RowsClassifier:
        """Return the classifier that :meth:`score` judges; its scores are no log-odds."""
        W = self.fit(S, T) / self.scale
        layers = ((W, -self.centre @ W),)
        return RowsClassifier(self.parts.pixels, layers, self.parts.labels, log_odds=False)

    def score(self, S: Any, T: Any) -> Metrics:
        """Score the ridge fit to the rows ``S`` with targets ``T``."""
        W = self.fit(S, T)
        X, y = self.parts.test
        wrong = np.argmax(self.standardised(X) @ W, axis=1) != y
        loss = np.mean(np.sum((self.X @ W - self.T) ** 2, axis=1)) / 2
        return {"test_error": float(np.mean(wrong)), "train_loss": float(loss)}

    def baselines(self, per_class: int, T: np.ndarray, seed: int) -> dict[str, Metrics]:
        """Score as many rows by other means, and all of them."""
        rng = np.random.RandomState(seed)
        draws = [self.score(self.some(per_class, rng), T) for _ in range(DRAWS)]
        y = self.parts.train[1]
        starts: Any = 3
        centres = [
            KMeans(per_class, n_init=starts, random_state=seed).fit(self.X[y == c]).cluster_centers_
            for c in range(self.parts.classes)
        ]
        means = "class means" if per_class == 1 else "k-means of each class"
        return {
            "real rows, where the run starts": draws[0],
            f"real rows, best training loss of {DRAWS} draws": min(
                draws, key=lambda row: row["train_loss"]
            ),
            means: self.score(np.concatenate(centres), T),
            f"all {len(y)} training rows": self.score(self.X, self.T),
        }


def _picture(judge: _Judge, start: np.ndarray, figure: Any, hyper: PyTree, params: PyTree) -> None:
    """Draw the images that the run started from, and below them what they have become."""
    del params
    rows, shape = min(len(start), 20), judge.parts.shape
    places = figure.subplots(2, rows, squeeze=False)
    for line, found in zip(places, (start, np.asarray(hyper["images"])), strict=True):
        for place, image in zip(line, found, strict=False):
            bound = float(np.abs(image).max())
            place.imshow(image.reshape(shape), cmap="RdBu_r", vmin=-bound, vmax=bound)
            place.set_axis_off()
    figure.suptitle("above: real images less their mean; below: the distilled ones")
