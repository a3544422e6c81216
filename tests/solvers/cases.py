"""Inner problems whose minimiser another program knows, and one row for every exported solver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge

import bilevel as bl

N, D = 23, 4  # no batch size in these tests divides 23
L1, L2 = 0.05, 0.1


@dataclass(frozen=True)
class Inner:
    """A problem, its start, and the minimiser that scikit-learn finds for `hyper`."""

    problem: bl.Problem
    hyper: np.ndarray
    params: Any
    data: bl.Data
    solution: np.ndarray
    curvature: float  # of the full loss; about four times as much for single examples


def squared(w: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def ridge_loss(w: Any, h: Any, batch: Any) -> Any:
    return squared(w, batch) + jnp.exp(h[1]) * jnp.sum(w**2) / 2


def lasso_loss(w: Any, h: Any, batch: Any) -> Any:
    return squared(w, batch)


def logistic_loss(params: Any, h: Any, batch: Any) -> Any:
    w = jnp.concatenate([params["a"], params["b"][None]])
    return jnp.mean(jax.nn.softplus(-batch[1] * (batch[0] @ w))) + jnp.exp(h[1]) * w @ w / 2


def outer_loss(w: Any, h: Any, batch: Any) -> Any:
    w = jnp.concatenate([w["a"], w["b"][None]]) if isinstance(w, dict) else w
    return squared(w, batch) + jnp.exp(h[0]) * jnp.sum(w) / 10


def soft_threshold(w: Any, h: Any, step: Any) -> Any:
    return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step * jnp.exp(h[0]), 0)


def design(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, D))
    return X, X @ np.array([1.0, -2.0, 0.0, 0.03]) + 0.3 * rng.standard_normal(N)


def make(name: str, seed: int = 0) -> Inner:
    """One of ridge, lasso, elastic_net, logistic; `hyper = log (L1, L2)`."""
    X, y = design(seed)
    y = np.where(y > 0, 1.0, -1.0) if name == "logistic" else y
    exact = {"tol": 1e-14, "max_iter": 10**6, "fit_intercept": False}
    model = {
        "ridge": Ridge(alpha=N * L2, fit_intercept=False),
        "lasso": Lasso(alpha=L1, **exact),
        "elastic_net": ElasticNet(alpha=L1 + L2, l1_ratio=L1 / (L1 + L2), **exact),
        "logistic": LogisticRegression(
            C=1 / (N * L2), fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cg"
        ),
    }[name].fit(X, y)
    return Inner(
        PROBLEMS[name],
        np.log([L1, L2]),
        {"a": np.zeros(D - 1), "b": np.zeros(())} if name == "logistic" else np.zeros(D),
        bl.Data(inner=(X, y), outer=(X[:7], y[:7])),
        np.ravel(model.coef_),
        float(np.linalg.eigvalsh(X.T @ X / N)[-1]) + L2,
    )


def flat(params: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


PROBLEMS = {
    "ridge": bl.Problem(ridge_loss, outer_loss, quadratic=True),
    "lasso": bl.Problem(lasso_loss, outer_loss, prox=soft_threshold),
    "elastic_net": bl.Problem(ridge_loss, outer_loss, prox=soft_threshold),
    "logistic": bl.Problem(logistic_loss, outer_loss),
}


def sklearn_lasso(w: Any, h: Any, data: Any) -> Any:
    model = Lasso(alpha=float(np.exp(h[0])), tol=1e-14, max_iter=10**6, fit_intercept=False)
    return model.fit(*(np.asarray(leaf, float) for leaf in data)).coef_


# name -> (from the curvature L to a solver, steps to rounding, the problems that it takes)
SMOOTH, SPARSE = ("ridge", "logistic"), ("lasso", "elastic_net")
SOLVERS: dict[str, tuple[Callable[[float], Any], int, tuple[str, ...]]] = {
    "GradientDescent": (lambda L: bl.GradientDescent(step_size=1 / L), 500, ("ridge",)),
    "SGD": (lambda L: bl.SGD(step_size=1 / L, momentum=0.6, nesterov=True), 300, ("logistic",)),
    "Optax": (lambda L: bl.Optax(bl.transform(optax.sgd, learning_rate=1 / L)), 500, ("ridge",)),
    "LBFGS": (lambda L: bl.LBFGS(), 30, SMOOTH),
    "Newton": (lambda L: bl.Newton(), 9, SMOOTH),
    "Direct": (lambda L: bl.Direct(), 1, ("ridge",)),
    "SVRG": (lambda L: bl.SVRG(step_size=0.1 / L, batch_size=4), 4000, SMOOTH + SPARSE),
    "SAGA": (lambda L: bl.SAGA(step_size=0.1 / L, batch_size=4), 4000, SMOOTH + SPARSE),
    "ProximalGradient": (lambda L: bl.ProximalGradient(step_size=1 / L), 500, SPARSE),
    "FISTA": (lambda L: bl.FISTA(step_size=1 / L), 300, SPARSE),
    "External": (lambda L: bl.External(sklearn_lasso), 1, ("lasso",)),
}
CASES = [(solver, name) for solver, (_, _, names) in SOLVERS.items() for name in names]
