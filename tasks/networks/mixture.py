r"""Data mixing: how much of each source a small language model should read, for a target.

    inner(w, h) = mean_i S h_s(i) loss(x_i; w)     rows x_i of S sources, as many of each
    outer(w)    = mean_i loss(x_i; w)              held-out rows of the target

``h`` lies on the simplex. The weights of the transformer and of the sources are learned side by
side: an outer step differentiates a few minibatch steps of the training that it continues. With one
step that is DoGE (Fan, Pagliardini, Jaggi, ICML 2024); Xie et al., "DoReMi", NeurIPS 2023, find
weights by a small model, with which a large one draws its text. So is judged here: a fresh
training draws its rows from the sources in proportion to the weights found.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from bilevel.estimators import innermost_estimator
from tasks.base import PyTree, Task
from tasks.datasets.texts import ALPHABET, read_texts
from tasks.judges.mixture_judge import Judge, draw_mixture
from tasks.parts.transformer import Transformer


@dataclass(frozen=True)
class Mixed:
    """The loss of rows weighted by their source; a batch is ``(rows [n, T + 1], source [n])``."""

    network: Transformer

    def __call__(self, weights: PyTree, hyper: Array, batch: Any) -> Array:
        rows, source = batch
        return jnp.mean(len(hyper) * hyper[source] * self.network.losses(weights, rows))


@dataclass(frozen=True)
class Target:
    """The mean loss of rows ``[n, T + 1]``."""

    network: Transformer

    def __call__(self, weights: PyTree, hyper: Array, rows: Array) -> Array:
        return jnp.mean(self.network.losses(weights, rows))


def mixture(
    estimator: Any,
    *,
    outer_steps: int = 60,
    rows: int = 1000,
    length: int = 32,
    validation: int = 256,
    test: int = 1000,
    width: int = 64,
    layers: int = 1,
    train_steps: int = 400,
    batch_size: int = 24,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> Task:
    """Make the task of weighting the sources of text, two of which are noise.

    Parameters
    ----------
    estimator, outer_steps : of the run, for the count of its tokens.
    rows : of each source, at most; they are drawn from all over its text.
    length : T, characters that a row predicts.
    validation, test : rows of the target.
    width, layers : of the transformer.
    train_steps, batch_size, learning_rate : of Adam in the trainings that judge weights.

    Notes
    -----
    ``test_loss`` is in nats a character, of a training that draws rows by the weights;
    ``long_test_loss`` of a longer one, which costs what the run and that training cost.
    ``misplaced`` counts the pairs of a source and a noise of which the noise weighs more.
    ``tokens`` are characters that weights and training read, in millions; those of steps that are
    differentiated count four times, which is what they cost.

    Raises
    ------
    ValueError : sizes below 1; an estimator without a solver of minibatches.

    Examples
    --------
    >>> import bilevel as bl
    >>> from tasks.networks.mixture import mixture
    >>> mixture(bl.Reverse(bl.SGD(0.1, batch_size=8), 2), rows=20, test=20).hyper.shape
    (6,)
    """
    sizes = {"rows": rows, "length": length, "validation": validation, "test": test}
    for name, size in (sizes | {"train_steps": train_steps, "batch_size": batch_size}).items():
        if size < 1:
            raise ValueError(f"{name}={size!r} must be at least 1.")
    inside: Any = innermost_estimator(estimator)
    batch = getattr(getattr(inside, "solver", None), "batch_size", None)
    if batch is None:
        raise ValueError(
            f"mixture trains a transformer, and {type(inside).__name__} has no solver with a "
            "batch_size. Take Reverse, Forward or PES with solver=adam or sgd."
        )
    texts = read_texts(length + 1, rows, seed)
    if (held := validation + test) > len(texts.target):
        raise ValueError(
            f"validation={validation} and test={test} rows: the target has {len(texts.target)}."
        )
    network = Transformer(len(ALPHABET), width, layers)
    params = network.draw_weights(length, seed)
    known, _, tested = np.split(texts.target[:held], [validation, validation])
    read = outer_steps * inside.steps * batch * length
    problem = bl.Problem(Mixed(network), Target(network), space=bl.spaces.Simplex())
    training = train_steps, batch_size, learning_rate, read, seed
    judge = Judge(problem.outer, params, texts, known, tested, *training)
    least = min(map(len, texts.sources.values()))  # as many of each
    sources = [part[:least] for part in texts.sources.values()]
    numbers = np.repeat(np.arange(len(sources), dtype=np.int32), least)
    inner = jnp.asarray(np.concatenate(sources)), jnp.asarray(numbers)
    return Task(
        name="mixture",
        problem=problem,
        data=bl.Data(inner=inner, outer=jnp.asarray(known)),
        hyper=jnp.full(len(sources), 1 / len(sources)),
        params=params,
        metrics=lambda hyper, _: judge.metrics(np.asarray(hyper, float)),
        baselines=judge.baselines,
        describe=partial(_describe, list(texts.sources)),
        notes={
            "has_minimiser": False,  # a training that goes on ends near none
            "penalties": list(texts.sources),
            "characters": texts.characters,
            "weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "rows": {"each": least, "validation": validation, "test": test},
        },
        picture=partial(draw_mixture, judge),
    )


def _describe(names: list[str], hyper: Array) -> dict[str, float]:
    """Return the weight of each source."""
    return {f"weight of {name}": float(w) for name, w in zip(names, hyper, strict=True)}
