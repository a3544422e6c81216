"""Weights of sources judged by trainings that draw their rows by them, beside other weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from tasks.base import Metrics, PyTree
from tasks.datasets.texts import NOISE, Texts

_PASSES = 4  # of a training that a step costs which is differentiated, measured
Loss = Callable[[PyTree, Any, Any], jax.Array]


@dataclass(frozen=True)
class Judge:
    """Trainings from one start, of rows of ``texts``, and the target's rows ``known`` and not."""

    loss: Loss
    params: PyTree
    texts: Texts
    known: np.ndarray
    tested: np.ndarray
    train_steps: int
    batch_size: int
    learning_rate: float
    read: int
    seed: int

    def draw_rows(self, weights: np.ndarray, steps: int | None = None) -> np.ndarray:
        """Draw the rows of a training, each of a source in proportion to the weights."""
        rng, parts = np.random.RandomState(self.seed + 2), list(self.texts.sources.values())
        size = (steps or self.train_steps) * self.batch_size
        source, within = rng.choice(len(parts), size, p=weights / weights.sum()), rng.rand(size)
        rows = [parts[s][int(u * len(parts[s]))] for s, u in zip(source, within, strict=True)]
        return np.stack(rows)

    @cached_property
    def _train(self) -> Callable[[np.ndarray], tuple[Any, Any]]:
        """Rows of a training, in their order, to the losses on known and unknown rows."""
        solver = bl.Optax(
            bl.transform(optax.adam, learning_rate=self.learning_rate),
            batch_size=self.batch_size,
            sampling="stream",
        )
        problem = bl.Problem(self.loss, self.loss)

        @jax.jit
        def train(rows: Any, known: Any, tested: Any) -> tuple[Any, Any]:
            data, key = bl.Data(inner=rows, outer=known), jax.random.key(self.seed)
            steps = len(rows) // self.batch_size
            end = bl.solve(problem, solver, (), self.params, data, key, steps=steps)
            return self.loss(end, (), known), self.loss(end, (), tested)

        return lambda rows: train(*map(jnp.asarray, (rows, self.known, self.tested)))

    def score(self, weights: np.ndarray, steps: int | None = None) -> Metrics:
        """Return the losses of a training with these weights, and what they give to noise."""
        rows = self.draw_rows(weights, steps)
        known, tested = self._train(rows)
        noise = np.isin(list(self.texts.sources), NOISE)
        return {
            "test_loss": float(tested),
            "validation_loss": float(known),
            "noise_weight": float(weights[noise].sum() / weights.sum()),
            "misplaced": float(np.sum(weights[noise][:, None] >= weights[~noise])),
            "tokens": len(rows) * self._length / 1e6,
        }

    @property
    def _length(self) -> int:
        return self.known.shape[1] - 1

    def _millions(self, trainings: int) -> float:
        return trainings * self.train_steps * self.batch_size * self._length / 1e6

    @property
    def _longer(self) -> int:
        """Steps of a training that costs what the run and the training after it cost."""
        return self.train_steps + _PASSES * self.read // (self.batch_size * self._length)

    def _score_twice(self, weights: np.ndarray) -> Metrics:
        """Return the scores of a training, and the test loss of a longer one."""
        scores, longer = self.score(weights), self.score(weights, self._longer)
        return {"test_loss": scores["test_loss"], "long_test_loss": longer["test_loss"]} | scores

    def metrics(self, weights: np.ndarray) -> Metrics:
        """Score weights that a run has found."""
        scores = self._score_twice(weights)
        return scores | {"tokens": scores["tokens"] + _PASSES * self.read / 1e6}

    @cached_property
    def grid(self) -> list[tuple[np.ndarray, Metrics]]:
        """Each source alone and each two by halves, with their scores."""
        unit = np.eye(len(self.texts.sources))
        points = [(a + b) / 2 for a, b in combinations_with_replacement(unit, 2)]
        return [(point, self.score(point)) for point in points]

    def baselines(self) -> dict[str, Metrics]:
        """Score the weights that need no training, the best that many find, and other text."""
        best = min((found for _, found in self.grid), key=lambda m: m["validation_loss"])
        alone = [found for point, found in self.grid if point.max() == 1]
        single = min(alone, key=lambda m: m["validation_loss"])
        cost = {"tokens": self._millions(len(self.grid))}
        names = list(self.texts.sources)
        size = self.train_steps * self.batch_size
        own = np.random.RandomState(self.seed + 3).randint(len(self.known), size=size)
        known, tested = self._train(self.known[own])
        return {
            "uniform weights": self._score_twice(np.ones(len(names))),
            "weights in proportion to length": self.score(
                np.array([self.texts.characters[name] for name in names], float)
            ),
            "best source alone": single | {"tokens": self._millions(len(alone))},
            f"best of a grid of {len(self.grid)}": best | cost,
            "the target's validation rows alone": {
                "test_loss": float(tested),
                "validation_loss": float(known),
                "tokens": self._millions(1),
            },
            "oracle: uniform weights without the noise": self.score(
                np.array([name not in NOISE for name in names], float)
            ),
        }


def draw_mixture(judge: Judge, figure: Any, hyper: jax.Array, params: PyTree) -> None:
    """Draw the weights found, and the losses of the grid, of uniform weights and of those found."""
    del params
    names, found = list(judge.texts.sources), np.asarray(hyper, float)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    left.barh(names, found, color=["C3" if name in NOISE else "C0" for name in names])
    left.axvline(1 / len(names), color="black", linewidth=0.8)
    left.invert_yaxis()
    left.set(xlabel="weight; the line is uniform", title="weights found; red is noise")
    points = sorted((scores["test_loss"], point) for point, scores in _keyed(judge.grid))
    right.plot([loss for loss, _ in points], "o", label="grid: one source, or two by halves")
    short = [name[:4] for name in names]
    labels = [" + ".join(short[i] for i in point) for _, point in points]
    right.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    lines = {"weights found": found, "uniform weights": np.ones(len(names))}
    for i, (label, weights) in enumerate(lines.items()):
        loss = judge.score(weights)["test_loss"]
        right.axhline(loss, color=f"C{i + 1}", label=f"{label}, {loss:.2f}")
    right.set(ylabel="test loss, nats a character")
    right.legend(fontsize=8)


def _keyed(grid: list[tuple[np.ndarray, Metrics]]) -> list[tuple[tuple[int, ...], Metrics]]:
    return [(tuple(map(int, np.flatnonzero(point))), scores) for point, scores in grid]
