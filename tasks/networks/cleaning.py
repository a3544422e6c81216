r"""Data cleaning by a convolutional network, with dropout and batch norm, on streamed minibatches.

    inner(w, h) = mean_i sigmoid(h_i) loss(x_i, y_i; w) + decay |w|^2     labels partly wrong
    outer(w)    = mean_i loss(x_i, y_i; w)                                labels right

As :mod:`tasks.cleaning`. Network and weights are learned side by side: an outer step differentiates
a few steps of the one training that it continues (Ren, Zeng, Yang, Urtasun, "Learning to reweight
examples for robust deep learning", ICML 2018, with one step and weights that are not kept).
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bilevel as bl
from tasks.base import Metrics, Task
from tasks.cleaning import cleaning, corrupt
from tasks.datasets.images import cast, images
from tasks.judges.cleaning_judge import CleaningJudge, describe_weights
from tasks.parts.convolutional import Convolutional, PredictionLoss, TrainingLoss
from tasks.parts.weighting import itself, predict, squashed
from tasks.solvers.from_rest import FromRest


class _Trainer:
    """Trainings from one start, of rows drawn in proportion to their weights."""

    def __init__(self, network: Convolutional, decay: float, steps: int, seed: int) -> None:
        self.network, self.decay, self.steps, self.seed = network, decay, steps, seed
        self.start = network.draw_weights(seed)

    @cached_property
    def _train(self) -> Any:
        loss = TrainingLoss(self.network, itself, self.decay)
        problem = bl.Problem(loss, PredictionLoss(self.network), stochastic=True, has_state=True)
        tx = optax.adam(optax.cosine_decay_schedule(_RATE, self.steps))
        solver = bl.Optax(tx, batch_size=_BATCH, sampling="stream")

        @jax.jit
        def train(start: Any, rows: Any, drawn: Any) -> Any:
            data = bl.Data(inner=((rows[0][drawn], rows[1][drawn]), drawn), outer=rows)
            ones, key = jnp.ones(len(rows[1])), jax.random.key(self.seed)
            params, state = start
            return bl.solve(
                problem, solver, ones, params, data, key, steps=self.steps, model_state=state
            )

        return train

    def fit(self, weights: np.ndarray, rows: Any) -> Any:
        """Return params and statistics."""
        rng = np.random.RandomState(self.seed + 2)
        drawn = rng.choice(len(weights), self.steps * _BATCH, p=weights / weights.sum())
        return self._train(self.start, rows, *cast(drawn))

    @cached_property
    def _score(self) -> Any:
        return jax.jit(self.network.score)

    def guess(self, model: Any, X: np.ndarray) -> np.ndarray:
        """Return the likeliest class of each row."""
        return predict(self._score(*model, *cast(X)))


_BATCH = 64  # rows of a step, in the run's stream and in trainings
_RATE = 3e-3  # of Adam in trainings, at first


def cleaning_network(
    data: str = "digits",
    noise: str = "other",
    fraction: float = 0.5,
    *,
    train: int = 1000,
    validation: int = 300,
    test: int | None = None,
    pool: int = 1,
    channels: tuple[int, ...] = (8, 16),
    dropout: float = 0.3,
    decay: float = 1e-4,
    train_steps: int = 600,
    softmax_steps: int = 40,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of weighting training examples while a convolutional network trains on them.

    Parameters
    ----------
    data, train, validation, test, pool, root, seed : as for :func:`tasks.datasets.images.images`.
    noise, fraction : as for :func:`tasks.cleaning.corrupt`.
    channels, dropout : as for :class:`tasks.parts.convolutional.Convolutional`.
    decay : of the inner loss, times the squares of all params.
    train_steps : of Adam in the trainings that judge weights.
    softmax_steps : outer steps of the softmax regression that cleans the same rows, a baseline.

    Notes
    -----
    The inner rows are a stream of minibatches of 64 with their numbers. ``test_error`` belongs to a
    fresh training that draws training and validation rows by their weights.

    Raises
    ------
    ValueError : bad data, sizes or noise.

    Examples
    --------
    >>> from tasks.networks.cleaning import cleaning_network
    >>> cleaning_network(train=200, validation=50).hyper.shape
    (200,)
    """
    rows = {"train": train, "validation": validation, "test": test, "pool": pool}
    rows |= {"root": root, "seed": seed}
    parts = images(data, **rows)
    X, y = parts.train
    labels = corrupt(y, parts.classes, noise, fraction, np.random.RandomState(seed + 1))
    network = Convolutional(parts.shape[0], parts.classes, tuple(channels), dropout)
    trainer = _Trainer(network, decay, train_steps, seed)
    params, state = trainer.start
    judge = CleaningJudge(parts, labels, trainer.fit, trainer.guess)
    source = jax.tree.map(np.asarray, cast(X, labels))

    def baselines() -> dict[str, Metrics]:
        softmax = cleaning(data, noise, fraction, decay=decay, **rows)
        return judge.baselines() | clean_by_softmax(softmax, judge, softmax_steps)

    return Task(
        name=f"cleaning network {data}",
        problem=bl.Problem(
            TrainingLoss(network, squashed, decay),
            PredictionLoss(network),
            stochastic=True,
            has_state=True,
        ),
        data=bl.Data(
            inner=bl.Stream(source, batch_size=_BATCH, seed=seed, index=True),
            outer=cast(*parts.validation),
        ),
        hyper=jnp.zeros(len(y)),
        params=params,
        model_state=state,
        metrics=lambda hyper, _: judge.metrics(hyper),
        baselines=baselines,
        describe=describe_weights,
        notes=parts.notes()
        | {"noise": noise, "fraction": fraction, "wrong_labels": int(np.sum(judge.wrong))}
        | {"weights": sum(leaf.size for leaf in jax.tree.leaves(params)), "has_minimiser": False},
        picture=judge.draw,
    )


def clean_by_softmax(softmax: Task, judge: CleaningJudge, steps: int) -> dict[str, Metrics]:
    """Score the weights that softmax regression finds, for itself and for the network."""
    solver = FromRest(bl.SGD(step_size=0.1, momentum=0.9))
    estimator = bl.Implicit(solver, steps=20, linear=bl.CG(tol=1e-10, max_steps=10))
    found = bl.tune(
        softmax.problem,
        estimator,
        optax.adam(0.1),
        softmax.hyper,
        softmax.params,
        softmax.data,
        steps=steps,
        key=jax.random.key(0),
        max_error=None,
    )
    return {
        "softmax regression, its own weights": softmax.metrics(found.hyper, found.params),
        "the network, the weights of softmax regression": judge.metrics(found.hyper),
    }
