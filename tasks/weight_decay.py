r"""One weight decay per weight of a classifier, learned on as many rows as it was trained on.

    inner(w, h) = mean_i loss(x_i, y_i; w) + 1/2 sum_j exp(h_j) w_j^2     training rows
    outer(w)    = mean_i loss(x_i, y_i; w)                                validation rows

Lorraine, Vicol, Duvenaud, AISTATS 2020, section 5.1: with as many hyperparameters as weights the
validation rows are memorised. That is a test of the hypergradient, not a way to generalise.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.images import Images, cast, images
from tasks.models.rows import RowsClassifier, make_layers
from tasks.parts.networks import perceptron
from tasks.parts.weighting import Mean, Model, cross_entropy, linear, linear_zeros, predict

GRID = np.linspace(-8.0, 2.0, 11)  # logarithms of the single decays to compare with


@dataclass(frozen=True)
class Decayed:
    """``mean_i loss_i + 1/2 sum_j exp(h_j) w_j^2``; ``hyper`` has the structure of ``params``."""

    model: Model

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        X, y = batch
        terms = jax.tree.map(lambda w, h: jnp.sum(jnp.exp(h) * w**2) / 2, params, hyper)
        return jnp.mean(cross_entropy(self.model(params, X), y)) + sum(jax.tree.leaves(terms))


def weight_decay(
    data: str = "digits",
    *,
    hidden: int | None = None,
    train: int = 50,
    validation: int = 50,
    test: int | None = None,
    start: float = -4.0,
    fit_steps: int = 1000,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of a log-decay for every weight of a softmax regression or small network.

    Parameters
    ----------
    data, train, validation, test, root, seed : as for :func:`tasks.datasets.images.images`.
    hidden : rectified units of a network (flax); ``None`` for a softmax regression.
    start : every log-decay at the start.
    fit_steps : of heavy ball (step 0.2, momentum 0.9) in every fit of a single decay for the table.

    Notes
    -----
    Metrics are of the inner model that the run ends with.

    Raises
    ------
    ValueError : bad data or sizes.

    Examples
    --------
    >>> from tasks.weight_decay import weight_decay
    >>> sum(leaf.size for leaf in weight_decay("digits").hyper.values())
    650
    """
    parts = images(data, train=train, validation=validation, test=test, root=root, seed=seed)
    d, C = parts.train[0].shape[1], parts.classes
    if hidden is None:
        model, params = linear, linear_zeros(d, C)
    else:
        model, params = perceptron((d, hidden, C), seed)
    problem = bl.Problem(Decayed(model), Mean(model))
    hyper = jax.tree.map(lambda w: jnp.full(w.shape, start, w.dtype), params)
    return Task(
        name=f"decays {data}" + ("" if hidden is None else f" ({hidden} hidden units)"),
        problem=problem,
        data=bl.Data(inner=cast(*parts.train), outer=cast(*parts.validation)),
        hyper=hyper,
        params=params,
        metrics=lambda _, params: _score(model, parts, params),
        baselines=lambda: _baselines(problem, model, parts, params, fit_steps),
        describe=_describe,
        model=lambda _, params: RowsClassifier(parts.pixels, make_layers(params), parts.labels),
        notes=parts.notes() | {"decays": sum(leaf.size for leaf in jax.tree.leaves(hyper))},
        picture=partial(_picture, parts) if hidden is None else None,
    )


def _describe(hyper: PyTree) -> dict[str, float]:
    low, middle, high = np.quantile(np.asarray(ravel_pytree(hyper)[0]), [0, 0.5, 1])
    return {"smallest log-decay": low, "median log-decay": middle, "largest log-decay": high}


def _score(model: Model, parts: Images, params: PyTree) -> Metrics:
    tested, held = (model(params, jnp.asarray(X)) for X, _ in (parts.test, parts.validation))
    y = parts.validation[1]
    return {
        "test_error": float(np.mean(predict(tested) != parts.test[1])),
        "validation_error": float(np.mean(predict(held) != y)),
        "validation_loss": float(jnp.mean(cross_entropy(held, jnp.asarray(y)))),
    }


def _baselines(
    problem: bl.Problem, model: Model, parts: Images, params: PyTree, steps: int
) -> dict[str, Metrics]:
    """Score one decay for all weights, the best on the validation rows; and none."""
    solver = bl.SGD(step_size=0.2, momentum=0.9)
    # exp(-inf) = 0: no decay. A step of 0.2 is stable below a curvature of 19.
    logs = cast(np.append(GRID, -np.inf))[0]

    @jax.jit
    def fits(rows: tuple) -> PyTree:
        def one(log: Array) -> PyTree:
            hyper = jax.tree.map(lambda w: jnp.full(w.shape, log, w.dtype), params)
            data = bl.Data(inner=rows, outer=rows)
            return bl.solve(problem, solver, hyper, params, data, jax.random.key(0), steps=steps)

        return jax.vmap(one)(logs)

    def scores(rows: tuple) -> list[Metrics]:
        found = fits(cast(*rows))
        return [
            _score(model, parts, jax.tree.map(lambda a, i=i: a[i], found)) for i in range(len(logs))
        ]

    both = tuple(np.concatenate(pair) for pair in zip(parts.train, parts.validation, strict=True))
    apart, together = scores(parts.train), scores(both)
    best = min(range(len(GRID)), key=lambda i: apart[i]["validation_loss"])
    return {
        f"one decay (best of {len(GRID)} on the validation rows)": apart[best],
        "the same decay, fitted to training and validation rows": together[best],
        "no decay": apart[-1],
    }


def _picture(parts: Images, figure: Any, hyper: PyTree, params: PyTree) -> None:
    """Draw log-decays of the pixels for each class, and the weights that they leave."""
    lines = {"log-decay": hyper["W"], "weight": params["W"]}
    places = figure.subplots(2, parts.classes, squeeze=False)
    for line, (name, columns) in zip(places, lines.items(), strict=True):
        columns = np.asarray(columns)
        bound = float(np.abs(columns - np.median(columns)).max())
        middle = float(np.median(columns))
        for label, place in enumerate(line):
            place.imshow(
                columns[:, label].reshape(parts.shape),
                "RdBu_r",
                vmin=middle - bound,
                vmax=middle + bound,
            )
            place.set(title=str(label), xticks=[], yticks=[])
        line[0].set_ylabel(name)
