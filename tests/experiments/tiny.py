"""A task of milliseconds under the name `tasks.tiny`, to run the whole command line on."""

import sys
from types import ModuleType

import jax.numpy as jnp
import numpy as np

import bilevel as bl
import tasks
from tasks.base import Task

LEAF = """
_target_: tasks.tiny.tiny
n: 23
noise: 0.5
seed: ${seed}
"""


def inner(w, log_penalty, batch):
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2 + jnp.sum(jnp.exp(log_penalty) * w**2) / 2


def outer(w, log_penalty, batch):
    del log_penalty
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


PROBLEM = bl.Problem(inner, outer, quadratic=True)


def tiny(n: int = 23, noise: float = 0.5, seed: int = 0, start: float = -2.0) -> Task:
    """Ridge with one penalty per feature, of which the first alone matters."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3, n, 3))
    y = X[:, :, 0] + noise * rng.normal(size=(3, n))

    def fit(log_penalty):
        H = X[0].T @ X[0] / n + np.diag(np.exp(np.asarray(log_penalty, float)))
        return np.linalg.solve(H, X[0].T @ y[0] / n), H

    def exact(log_penalty):
        """By the implicit function theorem, densely."""
        w, H = fit(log_penalty)
        residual = X[1] @ w - y[1]
        adjoint = np.linalg.solve(H, X[1].T @ residual / n)
        return np.mean(residual**2) / 2, -np.exp(np.asarray(log_penalty, float)) * w * adjoint

    def metrics(log_penalty, params):
        w, _ = fit(log_penalty)
        return {"mse": float(np.mean((X[2] @ w - y[2]) ** 2)), "size": float(np.sum(w**2))}

    return Task(
        name="tiny",
        problem=PROBLEM,
        data=bl.Data(inner=(X[0], y[0]), outer=(X[1], y[1])),
        hyper=jnp.full(3, start),
        params=jnp.zeros(3),
        metrics=metrics,
        baselines=lambda: {"no tuning": metrics(np.full(3, -20.0), None)},
        describe=lambda h: {"smallest": float(np.exp(np.min(h)))},
        exact=exact,
        notes={"n": n},
    )


def install() -> None:
    """Put the task where the command line looks for tasks."""
    module = ModuleType("tasks.tiny")
    tiny.__module__ = module.__name__
    module.tiny = tiny
    sys.modules[module.__name__] = module
    tasks.register("tasks.tiny.tiny")
