"""The smooth problems of the studies of open questions: ridge and logistic regression."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl


@dataclass(frozen=True)
class Setting:
    """A problem at one point, its exact hypergradient, and the curvatures that bound a step."""

    name: str
    problem: bl.Problem
    hyper: Any
    params: Any
    data: bl.Data
    exact: np.ndarray
    smallest: float  # curvature of the inner loss over all examples
    largest: float  # of its loss on one example, the largest

    @property
    def examples(self) -> int:
        """How many inner examples there are."""
        return len(jax.tree.leaves(self.data.inner)[0])


def _squares(w: Any, log_penalty: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def _ridge(w: Any, log_penalty: Any, batch: Any) -> Any:
    return _squares(w, log_penalty, batch) + jnp.sum(jnp.exp(log_penalty) * w**2) / 2


def _log_loss(w: Any, log_penalty: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


def _logistic(w: Any, log_penalty: Any, batch: Any) -> Any:
    return _log_loss(w, log_penalty, batch) + jnp.sum(jnp.exp(log_penalty) * w**2) / 2


# One object each, so that all settings of a name share their compilations.
RIDGE = bl.Problem(_ridge, _squares, quadratic=True)
LOGISTIC = bl.Problem(_logistic, _log_loss)


def make_design(
    seed: int, rows: int, features: int, spread: float = 0.5
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Rows of unit mean square length, scales 1 +- ``spread``, a signal, and the generator."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features)) * np.linspace(1 + spread, 1 - spread, features)
    X /= np.sqrt((X**2).sum(1).mean())
    return X, 2 * rng.standard_normal(features), rng


def make_ridge(seed: int, examples: int = 64, features: int = 8, hyper: Any = -2.5) -> Setting:
    """Ridge regression with log penalties ``hyper``, one or one per feature; quadratic."""
    X, w, rng = make_design(seed, 2 * examples, features)
    return make_setting("ridge", RIDGE, X, X @ w + 0.5 * rng.standard_normal(len(X)), hyper)


def make_logistic(seed: int, examples: int = 64, features: int = 8, hyper: Any = -3.0) -> Setting:
    """Logistic regression with log penalties ``hyper``; not quadratic."""
    X, w, rng = make_design(seed, 2 * examples, features)
    return make_setting(
        "logistic", LOGISTIC, X, np.sign(X @ w + 0.5 * rng.standard_normal(len(X))), hyper
    )


def make_setting(name: str, problem: bl.Problem, X: Any, y: Any, hyper: Any) -> Setting:
    """Return ``RIDGE`` or ``LOGISTIC`` on a table: the first half trains, the second validates."""
    n = len(y) // 2
    data = bl.Data(inner=(X[:n], y[:n]), outer=(X[n:], y[n:]))
    hyper, params = np.asarray(hyper, float), np.zeros(X.shape[1])
    _, exact = bl.testing.dense_hypergradient(problem, hyper, params, data)
    bend = np.ones(n)  # second derivative of each example's loss at the solution
    if problem is LOGISTIC:
        margin = y[:n] * (X[:n] @ bl.testing.dense_solution(problem, hyper, params, data))
        bend = 1 / (2 + np.exp(margin) + np.exp(-margin))
    penalty = np.exp(hyper) * np.ones(X.shape[1])
    hessian = X[:n].T @ (X[:n] * bend[:, None]) / n + np.diag(penalty)
    most = 0.25 if problem is LOGISTIC else 1.0
    largest = most * (X[:n] ** 2).sum(1).max() + penalty.max()
    smallest = float(np.linalg.eigvalsh(hessian)[0])
    return Setting(
        name, problem, hyper, params, data, np.atleast_1d(exact), smallest, float(largest)
    )
