r"""Two classes, one of them rare: weights of the training examples by a small balanced set.

    inner(w, h) = mean_i weight_i loss(x_i, y_i; w)      training rows, few of the rare class
    outer(w)    = mean_i loss(x_i, y_i; w)               a few rows of each class

``weights="examples"``: h_i is the weight of row i in the coming batch (Ren et al., ICML 2018).
``weights="network"``: ``sigmoid(network(loss_i; h))``, one hidden layer (Shu et al., NeurIPS 2019).
Both are made for :class:`tasks.solvers.online_reweighting.LookAhead`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.images import Images, Rows, cast, images
from tasks.models.rows import RowsClassifier, make_layers
from tasks.parts.weighting import Mean, Weighted, fitter, itself, predict

WEIGHTS = ("examples", "network")


def two_layers(params: PyTree, X: Array) -> Array:
    """Return log-odds of the rare class, ``[n, 1]``, by one hidden layer of rectified units."""
    hidden = jax.nn.relu(X @ params["W1"] + params["b1"])
    return hidden @ params["W2"] + params["b2"]


def start(d: int, hidden: int, seed: int) -> PyTree:
    """Draw weights: He's initialisation below, normal of size 0.1 above."""
    rng = np.random.RandomState(seed)
    first, last = rng.normal(0, np.sqrt(2 / d), (d, hidden)), rng.normal(0, 0.1, (hidden, 1))
    W1, b1, W2, b2 = cast(first, np.zeros(hidden), last, np.zeros(1))
    return {"W1": W1, "b1": b1, "W2": W2, "b2": b2}


def by_loss(hyper: PyTree, i: Array, losses: Array) -> Array:
    """Return weights as a function of the losses, ``[n]``; their mean over the batch is 1."""
    weights = jax.nn.sigmoid(two_layers(hyper, losses[:, None])[:, 0])
    return weights / jnp.mean(weights)


def imbalance(
    data: str = "digits",
    weights: str = "examples",
    *,
    common: int = 9,
    rare: int = 4,
    train: int = 100,
    share: float = 0.02,
    clean: int = 10,
    hidden: int = 100,
    pool: int = 1,
    steps: int = 500,
    step_size: float = 0.1,
    batch_size: int = 50,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of weighting the rows of two classes that are not equally frequent.

    Parameters
    ----------
    data, pool, root, seed : as for :func:`tasks.datasets.images.images`.
    weights : one of :data:`WEIGHTS`.
    common, rare : the two classes.
    train, share : training rows, and the share of them that is of the rare class.
    clean : rows of each class in the balanced set.
    hidden : units of the classifier.
    steps, step_size, batch_size : of SGD for the baselines; those of the run, to be fair.

    Notes
    -----
    Metrics are of the classifier that the run ends with, on test rows of both classes; the
    balanced set has served already.

    Raises
    ------
    ValueError : bad data or sizes; classes that do not exist or have too few rows.

    Examples
    --------
    >>> from tasks.imbalance import imbalance
    >>> imbalance("digits").notes["rows"]
    {'train': 100, 'validation': 20, 'test': 241}
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} must be one of {', '.join(WEIGHTS)}.")
    few = round(share * train)
    if common == rare or not 0 < few < train:
        raise ValueError(
            f"common={common}, rare={rare}, share={share!r} of train={train} rows: two classes "
            "are needed, and some rows of each."
        )
    parts = images(
        data,
        train={common: train - few, rare: few},
        validation={common: clean, rare: clean},
        pool=pool,
        root=root,
        seed=seed,
    )
    X, y = parts.train
    params = start(X.shape[1], hidden, seed)
    network = weights == "network"
    judge = _Judge(
        parts, params, steps=steps, step_size=step_size, batch_size=batch_size, seed=seed
    )
    return Task(
        name=f"imbalance {data} ({weights})",
        problem=bl.Problem(Weighted(two_layers, by_loss if network else itself), Mean(two_layers)),
        data=bl.Data(inner=cast(X, y, np.arange(len(y))), outer=cast(*parts.validation)),
        hyper=start(1, hidden, seed + 1) if network else jnp.zeros(len(y)),
        params=params,
        metrics=lambda _, params: judge.score(params),
        baselines=judge.baselines,
        describe=partial(_describe, network, y),
        model=lambda _, params: RowsClassifier(parts.pixels, make_layers(params), parts.labels),
        notes=parts.notes() | {"rare_rows": few},
    )


def _describe(network: bool, y: np.ndarray, hyper: PyTree) -> dict[str, float]:
    """Return the rare class's part of the weights, or those of an easy and a hard example."""
    if network:
        losses = jnp.array([0.05, 3.0])
        easy, hard = np.asarray(by_loss(hyper, losses, losses), float)
        return {"weight at loss 0.05": easy, "weight at loss 3": hard}
    weights = np.asarray(hyper)
    part = float(weights[y == 1].sum() / weights.sum()) if weights.sum() else 0.0
    return {"rare class's part of the last batch's weights": part}


class _Judge:
    """Classifiers fitted by SGD as in the run, judged on the test rows."""

    def __init__(
        self,
        parts: Images,
        params: PyTree,
        *,
        steps: int,
        step_size: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.parts, self.params, self.key = parts, params, jax.random.key(seed)
        self.batch_size = batch_size
        solver = bl.SGD(step_size, batch_size, sampling="epoch")
        self.fit = fitter(two_layers, solver, steps)

    def score(self, params: PyTree) -> Metrics:
        """Return errors on all test rows, and on those of each class."""
        X, y = self.parts.test
        wrong = predict(two_layers(params, jnp.asarray(X))) != y
        common, rare = (float(np.mean(wrong[y == label])) for label in (0, 1))
        return {"test_error": float(np.mean(wrong)), "common_error": common, "rare_error": rare}

    def baselines(self) -> dict[str, Metrics]:
        """Score the weights that a user would try first, with and without the balanced set."""
        train, clean = self.parts.train, self.parts.validation
        X, y = (np.concatenate(pair) for pair in zip(train, clean, strict=True))
        both = X, y
        return {
            "uniform weights": self._weighted(train, np.ones(2)),
            "inverse frequency": self._weighted(train, _inverse(train[1])),
            "inverse frequency, training rows and balanced set": self._weighted(
                both, _inverse(both[1])
            ),
            "balanced set alone": self._weighted(clean, np.ones(2)),
        }

    def _weighted(self, rows: Rows, of_class: np.ndarray) -> Metrics:
        # A batch may not be larger than the data: few rows are there several times.
        X, y = (np.concatenate([part] * -(-self.batch_size // len(part))) for part in rows)
        X, y, weights = cast(X, y, of_class[y])
        return self.score(self.fit(self.params, weights, (X, y), self.key))


def _inverse(y: np.ndarray) -> np.ndarray:
    """Return weights of the two classes whose mean over the rows is 1."""
    return len(y) / (2 * np.bincount(y, minlength=2))
