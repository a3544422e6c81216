r"""The learning rate of every SGD step, and the momentum, tuned for the loss where training ends.

    w_{k+1} = w_k - rate_k v_{k+1},   v_{k+1} = momentum v_k + grad loss(w_k; batch_k),   k < T
    outer(w_T)   of the validation rows;   h = (rate_1 .. rate_T, momentum)

The solver's own step size and momentum are the hyperparameters: ``solver.step_size`` and
``solver.momentum`` are ``Rate`` and ``Momentum`` of :mod:`tasks.parts.learned_schedules`. Every
outer step trains from the start (``warm_start=false``), and the whole training is differentiated.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import bilevel as bl
from tasks.base import PyTree, Task
from tasks.datasets.splits import split
from tasks.datasets.tables import Table, load
from tasks.judges import schedule_baselines
from tasks.judges.schedule_judge import Judge
from tasks.parts.adaptation import cross_entropy
from tasks.parts.learned_schedules import describe, picture, space
from tasks.parts.meta_networks import Dense, Network
from tasks.parts.noisy_quadratic import noisy_quadratic


@dataclass(frozen=True)
class Classify:
    """Cross-entropy of a network; batch: ``(X [n, d], y [n])``."""

    network: Network

    def __call__(self, weights: PyTree, hyper: PyTree, batch: Any) -> Array:
        return cross_entropy(self.network(weights, batch[0]), batch[1])


def schedule(
    data: str = "digits",
    *,
    steps: int = 100,
    batch_size: int = 32,
    momentum: float | None = 0.5,
    start: float = 0.1,
    largest: float = 3.0,
    widths: tuple[int, ...] = (32,),
    validation: float = 0.3,
    test: float = 0.3,
    rows: int | None = None,
    runs: int = 8,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of a learning rate per step for a network or the noisy quadratic.

    Parameters
    ----------
    data : a classification set of :func:`tasks.datasets.tables.load`; or ``"quadratic"``.
    steps : T, of a training; those of the estimator must be as many.
    batch_size : of the baselines' SGD, and of the runs that judge; the solver's must be the same.
    momentum : where it starts; ``None`` for none, neither tuned nor used.
    start : the learning rate of every step at the start.
    largest : no learning rate exceeds it.
    widths : of the network's hidden layers.
    validation, test, rows, seed, root : as for :func:`tasks.ridge.ridge`.
    runs : trainings that judge a schedule, each from new weights with new minibatches.

    Raises
    ------
    ValueError : counts or numbers out of range, bad data.

    Examples
    --------
    >>> from tasks.schedule import schedule
    >>> schedule("quadratic", steps=50, momentum=None).hyper["rate"].shape
    (50,)
    """
    for name, number in (("steps", steps), ("batch_size", batch_size), ("start", start)):
        if not number > 0:
            raise ValueError(f"{name}={number!r} must be positive.")
    if not start < largest:
        raise ValueError(f"start={start!r} must lie below largest={largest!r}.")
    if momentum is not None and not 0 < momentum < 1:
        raise ValueError(f"momentum={momentum!r} must lie between 0 and 1, or be null for none.")
    if runs < 2:
        raise ValueError(f"runs={runs!r} must be at least 2: one training has no interval.")
    dtype = jnp.result_type(float)
    hyper = {"rate": jnp.full(steps, start, dtype)}
    if momentum is not None:
        hyper["momentum"] = jnp.asarray(momentum, dtype)
    if data == "quadratic":
        return noisy_quadratic(hyper, largest)
    table = load(data, root, kind="classification")
    return _network(table, hyper, largest, widths, batch_size, validation, test, rows, runs, seed)


def _network(
    table: Table,
    hyper: PyTree,
    largest: float,
    widths: tuple[int, ...],
    batch_size: int,
    validation: float,
    test: float,
    rows: int | None,
    runs: int,
    seed: int,
) -> Task:
    parts = split(table, validation=validation, test=test, seed=seed, rows=rows)
    train, held, tested = (
        (table.X[r], table.y[r]) for r in (parts.train, parts.validation, parts.test)
    )
    centre, scale = train[0].mean(), train[0].std()  # one of each: pixels share their unit
    levels = [
        (jnp.asarray((X - centre) / scale, jnp.result_type(float)), jnp.asarray(y, jnp.int32))
        for X, y in (train, held, tested)
    ]
    network = Network(Dense(tuple(widths)), train[0].shape[1:], len(table.classes))
    problem = bl.Problem(Classify(network), Classify(network), space=space(hyper, largest))
    data = bl.Data(inner=levels[0], outer=levels[1])
    judge = Judge(problem, network, data, levels[2], batch_size, runs, seed)
    return Task(
        name=f"schedule {table.source.removeprefix('scikit-learn ')}",
        problem=problem,
        data=data,
        hyper=hyper,
        params=jax.jit(network.init)(jax.random.key(seed)),
        metrics=lambda hyper, _: judge(hyper),
        baselines=lambda: schedule_baselines.network(judge, hyper),
        describe=describe,
        picture=picture,
        notes={"steps": len(hyper["rate"]), "rows": [len(level[1]) for level in levels]},
    )
