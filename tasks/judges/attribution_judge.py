"""The linear datamodelling score: attributions held against models that were trained again."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from scipy.stats import rankdata

import bilevel as bl
from bilevel.estimators import innermost_estimator
from tasks.base import Metrics, PyTree
from tasks.datasets.images import Images, cast
from tasks.parts.weighting import Mean, Model, cross_entropy, square

RESAMPLES = 200


def score_subsets(
    scores: np.ndarray, subsets: np.ndarray, outcomes: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Return the linear datamodelling score, and a 95 % bootstrap interval.

    Parameters
    ----------
    scores : ``[T, n]``, of each training row for each test row.
    subsets : ``[M, k]``, the rows of each subset.
    outcomes : ``[T, M]``, what the models trained on the subsets really gave.
    seed : of the resamples, of test rows and of subsets both.
    """
    predicted = scores[:, subsets].sum(2)
    rng = np.random.default_rng(seed)
    tests, many = outcomes.shape
    again = [
        _mean_spearman(predicted[np.ix_(t, m)], outcomes[np.ix_(t, m)])
        for t, m in (
            (rng.integers(tests, size=tests), rng.integers(many, size=many))
            for _ in range(RESAMPLES)
        )
    ]
    low, high = np.quantile(again, [0.025, 0.975])
    return _mean_spearman(predicted, outcomes), float(low), float(high)


def _mean_spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean over rows of the rank correlation of two tables; 0 of a constant row."""
    a, b = (rankdata(x, axis=1) for x in (a, b))
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return float(np.mean((a * b).sum(1) / np.where(size > 0, size, 1)))


@dataclass(frozen=True)
class Judge:
    """Models retrained on subsets, and the scores that are held against them."""

    parts: Images
    model: Model
    params: PyTree
    estimator: Any
    subsets: np.ndarray
    decay: float
    runs: int
    damping: float
    seed: int

    @cached_property
    def problem(self) -> bl.Problem:
        """The problem without weights: a mean over rows, of which each has its share of decay."""

        def inner(params: PyTree, hyper: PyTree, batch: Any) -> Array:
            return Mean(self.model)(params, hyper, batch) + self.decay * square(params)

        return bl.Problem(inner, Mean(self.model))

    @cached_property
    def attributions(self) -> bl.Estimate:
        """Of the estimator, a row for each test row."""
        data = bl.Data(inner=cast(*self.parts.train), outer=cast(*self.parts.test))
        # Of a run that has not converged evidence says so, and it is the run that is asked about.
        key = jax.random.key(self.seed)
        return bl.attribute(
            self.problem, self.estimator, (), self.params, data, key, each=True, max_error=np.inf
        )

    def _train(self, rows: Array, key: Array) -> PyTree:
        """Return params trained on these rows alone."""
        X, y = cast(*self.parts.train)
        inside: Any = innermost_estimator(self.estimator)
        data = bl.Data(inner=(X[rows], y[rows]), outer=cast(*self.parts.test))
        return bl.solve(self.problem, inside.solver, (), self.params, data, key, steps=inside.steps)

    def _retrain(self, stream: int) -> np.ndarray:
        """Return the mean loss of each test row under the models of each subset, ``[T, M]``."""
        V, t = cast(*self.parts.test)

        @jax.jit
        @jax.vmap
        def outcome(rows: Array, keys: Array) -> Array:
            losses = jax.vmap(lambda key: cross_entropy(self.model(self._train(rows, key), V), t))
            return jnp.mean(losses(keys), axis=0)

        shape = (len(self.subsets), self.runs)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), stream), shape)
        return np.asarray(outcome(jnp.asarray(self.subsets), keys), float).T

    @cached_property
    def outcomes(self) -> np.ndarray:
        """Of the subsets, what the scores are held against."""
        return self._retrain(1)

    def score(self, scores: np.ndarray) -> Metrics:
        """Return the score of some attributions ``[T, n]`` with its interval."""
        lds, low, high = score_subsets(scores, self.subsets, self.outcomes, self.seed)
        return {"lds_shortfall": 1 - lds, "lds": lds, "lds_low": low, "lds_high": high}

    @cached_property
    def metrics(self) -> Metrics:
        """Return the score of the estimator, and the size of its error bars beside its own."""
        found = self.attributions
        scores = self.score(np.asarray(found.grad, float))
        if (error := found.evidence.standard_error) is not None:
            noise = jnp.linalg.norm(error) / jnp.linalg.norm(found.grad)
            scores["standard_error"] = float(noise)
        return scores

    def baselines(self) -> dict[str, Metrics]:
        """Score what needs no derivative of the solver, and what no score could be above."""
        # As many ends of runs as the estimator has copies, so that all average over as much noise.
        keys = jax.random.split(jax.random.key(self.seed), getattr(self.estimator, "n", 1))
        ends = [self._compare_gradients(key) for key in keys]
        influences, products = (np.mean(part, axis=0) for part in zip(*ends, strict=True))
        same = self.parts.test[1][:, None] == self.parts.train[1]
        likeness = _correlate(self.parts.test[0], self.parts.train[0])
        rows = {
            "influence functions at the end of the run": influences,
            "products of gradients at the end of the run": products,
            "likeness of the images, by label": np.where(same, -likeness, likeness),
            "chance": np.random.default_rng(self.seed).normal(size=same.shape),
        }
        scored = {name: self.score(scores) for name, scores in rows.items()}
        again = _mean_spearman(self._retrain(2), self.outcomes)
        return scored | {
            "oracle: the same subsets trained on again": {"lds_shortfall": 1 - again, "lds": again}
        }

    def _compare_gradients(self, key: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return influence functions and products of gradients where a run ends, ``[T, n]``.

        The curvature is that of Gauss and Newton, which influence functions of networks take: it
        is never negative, and is the Hessian itself where scores are linear in the params.
        """
        params = self._train(jnp.arange(len(self.parts.train[1])), key)
        flat, unravel = ravel_pytree(params)
        (X, y), (V, t) = cast(*self.parts.train), cast(*self.parts.test)

        def losses(flat: Array, X: Array, y: Array) -> Array:
            return cross_entropy(self.model(unravel(flat), X), y)

        likely = jax.nn.softmax(self.model(params, X))
        bend = jax.vmap(jnp.diag)(likely) - likely[:, :, None] * likely[:, None]
        jacobian = jax.jacrev(lambda flat: self.model(unravel(flat), X))(flat)
        curvature = jnp.einsum("ncp,ncd,ndq->pq", jacobian, bend, jacobian) / len(y)
        slopes = jax.jacrev(losses)(flat, X, y) + 2 * self.decay * flat
        found = slopes, jax.jacrev(losses)(flat, V, t), curvature
        own, to_row, curvature = (np.asarray(x, float) for x in found)
        curvature = curvature + (2 * self.decay + self.damping) * np.eye(len(flat))
        return -to_row @ np.linalg.solve(curvature, own.T) / len(y), -to_row @ own.T


def _correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of the pixels of each image with those of each other, ``[T, n]``."""
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def draw_attributions(judge: Judge, figure: Any, hyper: Array, params: PyTree) -> None:
    """Draw losses predicted and real for one test row, and which rows helped and harmed three."""
    del hyper, params
    scores = np.asarray(judge.attributions.grad, float)
    predicted = scores[:, judge.subsets].sum(2)
    hardest = np.argsort(-judge.outcomes.mean(1))[:3]  # whose loss the training rows decide
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.4))
    axes = left.subplots()
    axes.scatter(predicted[hardest[0]], judge.outcomes[hardest[0]], s=12)
    axes.set(xlabel="predicted by the sum of attributions", ylabel="loss after retraining")
    axes.set_title(f"one test image, {len(judge.subsets)} subsets", fontsize=10)
    right.suptitle("test image; training images that helped most; that harmed most", fontsize=10)
    grid = right.subplots(len(hardest), 7)
    for row, t in zip(grid, hardest, strict=True):
        order = np.argsort(scores[t])
        chosen = [
            (judge.parts.test, t),
            *((judge.parts.train, i) for i in (*order[:3], *order[-3:])),
        ]
        for place, (rows, i) in zip(row, chosen, strict=True):
            place.imshow(rows[0][i].reshape(judge.parts.shape), cmap="gray_r")
            place.set_title(str(rows[1][i]), fontsize=8)
            place.set_axis_off()
