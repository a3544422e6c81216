r"""Data augmentation as hyperparameters: how far training images are shifted, turned, stretched.

    inner(w, h) = mean_i loss(network(warp(x_i, exp(h), z_i); w), y_i) + decay |w|^2   training rows
    outer(w)    = mean_i loss(network(x_i; w), y_i)                                  validation rows

The inner loss sees randomness only through its batch: each training row is there ``draws`` times,
each time with random numbers z of its own.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.images import Images, Rows, cast, images
from tasks.models.rows import RowsClassifier, make_layers
from tasks.parts.networks import perceptron
from tasks.parts.warp import MAGNITUDES, NUMBERS, warp
from tasks.parts.weighting import Mean, Model, cross_entropy, predict, square

USUAL = (0.5, 0.15, 0.1, 0.1)  # half a pixel, 9 degrees, a tenth: what one would try by hand
SEARCH = 16  # policies that random search tries


@dataclass(frozen=True)
class Augmented:
    """Mean loss of warped rows; a batch is ``(X [n, d], y [n], z [n, 5])``, ``hyper`` log-sizes."""

    model: Model
    shape: tuple[int, int]
    decay: float

    def __call__(self, params: PyTree, hyper: Array, batch: Any) -> Array:
        X, y, z = batch
        moved = warp(X, jnp.exp(hyper), z, self.shape)
        losses = cross_entropy(self.model(params, moved), y)
        return jnp.mean(losses) + self.decay * square(params)


def augmentation(
    data: str = "digits",
    *,
    hidden: int = 64,
    train: int = 100,
    validation: int = 200,
    test: int | None = None,
    pool: int = 1,
    draws: int = 16,
    start: float = 0.2,
    decay: float = 1e-3,
    steps: int = 1000,
    step_size: float = 0.03,
    momentum: float = 0.9,
    batch_size: int = 50,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of sizing shifts, rotations, zooms and shears of a network's training images.

    Parameters
    ----------
    data, train, validation, test, pool, root, seed : as for :func:`tasks.datasets.images.images`.
    hidden : rectified units of the network (flax).
    draws : how often each training row occurs, with other random numbers.
    start : all sizes at the start, in pixels, radians, logarithm and slope. Not near 0: a small
        shift alone blurs an image before it helps, so that descent from there leads back to 0.
    decay : of the inner loss, times the squares of all weights; without it the network grows ever
        surer of itself, and the outer loss with it.
    steps, step_size, momentum, batch_size : of SGD in the fits for the table; as in the run.

    Notes
    -----
    Metrics are of a network trained from its start on training and validation rows together, under
    the policy that was found.

    Raises
    ------
    ValueError : bad data or sizes.

    Examples
    --------
    >>> from tasks.augmentation import augmentation
    >>> augmentation("digits").hyper.shape
    (4,)
    """
    if draws < 1 or not start > 0:
        raise ValueError(f"draws={draws} must be at least 1, and start={start!r} positive.")
    parts = images(
        data, train=train, validation=validation, test=test, pool=pool, root=root, seed=seed
    )
    network, params = perceptron((parts.train[0].shape[1], hidden, parts.classes), seed)
    problem = bl.Problem(Augmented(network, parts.shape, decay), Mean(network))
    solver = bl.SGD(step_size, batch_size, momentum=momentum, sampling="epoch")
    judge = _Judge(problem, parts, params, solver, steps, draws, seed)
    hyper = jnp.full(len(MAGNITUDES), np.log(start), jnp.result_type(float))
    return Task(
        name=f"augmentation {data}",
        problem=problem,
        data=bl.Data(inner=cast(*judge.drawn(parts.train)), outer=cast(*parts.validation)),
        hyper=hyper,
        params=params,
        metrics=lambda hyper, _: judge.refit(hyper),
        baselines=judge.baselines,
        describe=lambda hyper: dict(zip(MAGNITUDES, np.exp(np.asarray(hyper, float)), strict=True)),
        model=lambda hyper, _: judge.model_of(hyper),
        notes=parts.notes() | {"penalties": [f"log {name}" for name in MAGNITUDES]},
        picture=partial(_picture, parts),
    )


class _Judge:
    """Networks trained under one policy or another, and judged on images as they are."""

    def __init__(
        self,
        problem: bl.Problem,
        parts: Images,
        params: PyTree,
        solver: bl.SGD,
        steps: int,
        draws: int,
        seed: int,
    ) -> None:
        outer: Any = problem.outer
        self.parts, self.model, self.draws, self.seed = parts, outer.model, draws, seed
        key = jax.random.key(seed)

        @jax.jit
        def fit(hyper: Array, rows: tuple) -> PyTree:
            data = bl.Data(inner=rows, outer=rows)
            return bl.solve(problem, solver, hyper, params, data, key, steps=steps)

        self.fit = fit

    def drawn(self, rows: Rows) -> tuple[np.ndarray, ...]:
        """Repeat each row so many times, with its random numbers."""
        X, y = (np.concatenate([part] * self.draws) for part in rows)
        z = np.random.RandomState(self.seed).normal(size=(len(y), NUMBERS))
        return X, y, z

    def score(self, hyper: Any, fitted: Rows, judged: Rows) -> Metrics:
        """Score the network trained on rows ``fitted`` under the policy ``hyper``."""
        rows = cast(*self.drawn(fitted))
        params = self.fit(jnp.asarray(hyper, rows[0].dtype), rows)
        X, y = cast(*judged)
        scores = self.model(params, X)
        return {
            "test_error": float(np.mean(predict(scores) != judged[1])),
            "test_log_loss": float(jnp.mean(cross_entropy(scores, y))),
        }

    def refit(self, hyper: Any) -> Metrics:
        """Score on the test rows, after training on training and validation rows together."""
        return self.score(hyper, self.development(), self.parts.test)

    def development(self) -> Rows:
        """Return training and validation rows together."""
        both = zip(self.parts.train, self.parts.validation, strict=True)
        X, y = (np.concatenate(pair) for pair in both)
        return X, y

    def model_of(self, hyper: Any) -> RowsClassifier:
        """Return the network that :meth:`refit` judges."""
        rows = cast(*self.drawn(self.development()))
        params = self.fit(jnp.asarray(hyper, rows[0].dtype), rows)
        return RowsClassifier(self.parts.pixels, make_layers(params), self.parts.labels)

    def baselines(self) -> dict[str, Metrics]:
        """Score no policy, one by hand, and the best of a random search on the validation rows."""
        rng = np.random.RandomState(self.seed)
        tried = rng.uniform(np.log(0.01), np.log(1.0), (SEARCH, len(MAGNITUDES)))
        held = self.parts.validation
        losses = [self.score(log, self.parts.train, held)["test_log_loss"] for log in tried]
        usual = ", ".join(f"{name} {size:g}" for name, size in zip(MAGNITUDES, USUAL, strict=True))
        return {
            "no policy": self.refit(np.full(len(MAGNITUDES), -np.inf)),
            f"by hand ({usual})": self.refit(np.log(USUAL)),
            f"random search (best of {SEARCH} on the validation rows)": self.refit(
                tried[int(np.argmin(losses))]
            ),
        }


def _picture(parts: Images, figure: Any, hyper: Array, params: PyTree) -> None:
    """Draw some training images, and below each what the policy makes of it."""
    del params
    X = jnp.asarray(parts.train[0][:10])
    places = figure.subplots(4, 10, squeeze=False)
    for k, line in enumerate(places):
        z = np.random.RandomState(k).normal(size=(len(X), NUMBERS)) * (k > 0)
        moved = warp(X, jnp.exp(hyper), jnp.asarray(z, X.dtype), parts.shape)
        for place, image in zip(line, np.asarray(moved), strict=True):
            place.imshow(image.reshape(parts.shape), cmap="gray_r", vmin=0, vmax=1)
            place.set_axis_off()
    figure.suptitle("above: training images; below: as the policy found moves them")
