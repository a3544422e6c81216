r"""A deep equilibrium model: a layer whose output is a fixed point, trained as a bilevel problem.

    z_i = tanh(W z_i + U x_i + b)                          the inner problem, for every row i
    outer(z, h) = mean_i loss(V z_i + c, y_i) + decay (|W|^2 + |U|^2 + |V|^2)

The states z are the params, the weights ``h = (W, U, b, V, c)`` the hyperparameters. Bai, Kolter,
Koltun, "Deep equilibrium models", NeurIPS 2019. No row of W may be longer than ``contraction`` in
absolute values, so that there is one fixed point and iterating finds it: El Ghaoui, Gu, Travacca,
Askari, Tsai, "Implicit deep learning", SIAM J. Mathematics of Data Science 2021.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import PyTree, Task
from tasks.datasets.images import cast, images
from tasks.judges.equilibrium_judge import Judge, draw_hypergradients
from tasks.parts.weighting import cross_entropy, square


@dataclass(frozen=True)
class Layer:
    """``(states [n, p], hyper, X [n, d]) -> [n, p]``, a contraction whatever the weights are."""

    contraction: float

    def __call__(self, states: Array, hyper: PyTree, X: Array) -> Array:
        if len(states) != len(X):
            raise ValueError(
                f"equilibrium has {len(states)} states, one for each row, and a step sees {len(X)} "
                "rows: a minibatch has no states of its own. Take solver=anderson, picard or "
                "newton, or solver.batch_size=null."
            )
        W = shorten_rows(hyper["W"], self.contraction)
        return jnp.tanh(states @ W.T + X @ hyper["U"].T + hyper["b"])


@dataclass(frozen=True)
class ReadOut:
    """The penalised cross-entropy of a linear read-out of the states; a batch is ``(X, y)``."""

    decay: float

    def __call__(self, states: Array, hyper: PyTree, batch: Any) -> Array:
        loss = jnp.mean(cross_entropy(states @ hyper["V"].T + hyper["c"], batch[1]))
        return loss + self.decay * square([hyper[name] for name in "WUV"])


def shorten_rows(W: Array, longest: float) -> Array:
    """Return W with each row whose absolute values add up to more than ``longest`` scaled down."""
    lengths = jnp.sum(jnp.abs(W), axis=1, keepdims=True)
    return W * (longest / jnp.maximum(lengths, longest))


def equilibrium(
    data: str = "digits",
    *,
    units: int = 32,
    train: int = 600,
    test: int | None = None,
    contraction: float = 0.9,
    decay: float = 1e-4,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of training an equilibrium layer and its read-out.

    Parameters
    ----------
    data, train, test, root, seed : as for :func:`tasks.datasets.images.images`.
    units : p, entries of a state.
    contraction : the most that a step of the layer may leave of the distance of two states; W
        begins as half so many times the identity.
    decay : of the outer loss, times the squares of W, U and V.

    Notes
    -----
    The outer loss is that of the rows whose states are the params: those of training. The test
    rows have equilibria of their own.

    Raises
    ------
    ValueError : bad data or sizes; a contraction that does not lie between 0 and 1.

    Examples
    --------
    >>> from tasks.networks.equilibrium import equilibrium
    >>> equilibrium(units=5, train=50).params.shape
    (50, 5)
    """
    if not 0 < contraction < 1:
        raise ValueError(
            f"contraction={contraction!r} must lie between 0 and 1: a layer that does not contract "
            "may have several equilibria, or none that a step leads to."
        )
    if units < 1:
        raise ValueError(f"units={units!r} must be at least 1.")
    parts = images(data, train=train, test=test, root=root, seed=seed)
    width, rng = parts.train[0].shape[1], np.random.RandomState(seed + 1)
    hyper = {
        "W": contraction / 2 * np.eye(units),
        "U": rng.normal(size=(units, width)) / np.sqrt(width),
        "b": np.zeros(units),
        "V": rng.normal(size=(parts.classes, units)) / np.sqrt(units),
        "c": np.zeros(parts.classes),
    }
    hyper = dict(zip(hyper, cast(*hyper.values()), strict=True))
    problem = bl.Problem(outer=ReadOut(decay), fixed_point=Layer(contraction))
    inner, y = cast(*parts.train)
    rows = bl.Data(inner=inner, outer=(inner, y))
    judge = Judge(parts, problem, rows, contraction, decay, units, seed)
    return Task(
        name=f"equilibrium {data}",
        problem=problem,
        data=rows,
        hyper=hyper,
        params=jnp.zeros((train, units), inner.dtype),
        metrics=lambda hyper, params: judge.metrics(hyper),
        baselines=judge.baselines,
        describe=partial(_describe, judge),
        notes=parts.notes() | {"weights": sum(leaf.size for leaf in jax.tree.leaves(hyper))},
        picture=partial(draw_hypergradients, judge),
    )


def _describe(judge: Judge, hyper: PyTree) -> dict[str, float]:
    """Return by how much a step of the layer shortens distances, near the equilibria at worst."""
    rates = judge.solve_densely(hyper).rates
    return {"median rate of convergence": np.median(rates), "largest": np.max(rates)}
