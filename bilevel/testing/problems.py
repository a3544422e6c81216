"""Small named problems, each made from a seed, on which estimators are tested."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Data, Problem
from bilevel.utils import PyTree


@dataclass(frozen=True)
class Case:
    """A problem with all that is needed to run an estimator on it to convergence.

    Parameters
    ----------
    name, problem, hyper, params, data : the problem and where it starts; float64 NumPy leaves,
        which JAX takes in its current precision.
    step_size : at which full-batch gradient descent converges.
    steps : after which it, and its derivative, have converged to float64 rounding.
    exact : ``hyper -> (value, grad)`` in closed form, or ``None``.
    """

    name: str
    problem: Problem
    hyper: PyTree
    params: PyTree
    data: Data
    step_size: float
    steps: int
    exact: Callable[[PyTree], tuple[float, PyTree]] | None = None


def ridge(seed: int = 0) -> Case:
    r"""Return ridge regression with one log-penalty per feature; quadratic, so in closed form.

    ``inner = |X w - y|^2 / 2n + sum_j exp(h_j) w_j^2 / 2``, 23 rows, 4 features.

    Examples
    --------
    >>> import bilevel as bl
    >>> case = bl.testing.ridge(seed=0)
    >>> value, grad = case.exact(case.hyper)
    >>> grad.shape
    (4,)
    """
    X, w, rng = _design(seed, rows=36, features=4)
    y = X @ w + 0.5 * rng.standard_normal(36)
    data = Data(inner=(X[:23], y[:23]), outer=(X[23:], y[23:]))
    hyper = rng.uniform(-2.0, 0.0, 4)

    def exact(hyper: PyTree) -> tuple[float, PyTree]:
        (A, b), (V, c) = data.inner, data.outer
        penalty = np.exp(np.asarray(hyper, float))
        H = A.T @ A / len(b) + np.diag(penalty)
        w = np.linalg.solve(H, A.T @ b / len(b))
        error = V @ w - c
        adjoint = np.linalg.solve(H, V.T @ error / len(c))
        return float(error @ error / (2 * len(c))), -adjoint * penalty * w

    return Case("ridge", _RIDGE, hyper, np.zeros(4), data, 0.4, 300, exact)


def logistic(seed: int = 0) -> Case:
    r"""Return logistic regression with an intercept and one log-penalty, a scalar.

    ``inner = mean log(1 + exp(-y (x.w + b))) + exp(h) (|w|^2 + b^2) / 2``, labels -1 and 1,
    26 rows, 3 features.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.testing.logistic(seed=0).name
    'logistic'
    """
    X, w, rng = _design(seed, rows=37, features=3)
    y = np.where(X @ w + rng.standard_normal(37) > 0, 1.0, -1.0)
    data = Data(inner=(X[:26], y[:26]), outer=(X[26:], y[26:]))
    params = {"w": np.zeros(3), "b": np.zeros(())}
    return Case("logistic", _LOGISTIC, np.asarray(-1.5), params, data, 1.0, 300)


def mlp(seed: int = 0) -> Case:
    r"""Return a small tanh network with one log weight decay per layer; not convex.

    ``inner = mean (f(x) - y)^2 / 2 + sum_layers exp(h_layer) |W_layer|^2 / 2``, 29 rows, 2
    features, 3 hidden units.

    Examples
    --------
    >>> import bilevel as bl
    >>> sorted(bl.testing.mlp(seed=0).hyper)
    ['hidden', 'out']
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((42, 2))
    y = 2 * np.sin(X[:, 0]) + X[:, 1] + 0.1 * rng.standard_normal(42)
    data = Data(inner={"x": X[:29], "y": y[:29]}, outer={"x": X[29:], "y": y[29:]})
    hidden = {"W": 0.7 * rng.standard_normal((2, 3)), "b": np.zeros(3)}
    params = {"hidden": hidden, "out": {"W": 0.7 * rng.standard_normal(3), "b": np.zeros(())}}
    hyper = {"hidden": np.asarray(-1.0), "out": np.asarray(-1.5)}
    return Case("mlp", _MLP, hyper, params, data, 0.3, 1200)


def _design(
    seed: int, *, rows: int, features: int
) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, features)), rng.standard_normal(features), rng


def _ridge_outer(w: PyTree, log_penalty: Array, batch: PyTree) -> Array:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def _ridge_inner(w: PyTree, log_penalty: Array, batch: PyTree) -> Array:
    return _ridge_outer(w, log_penalty, batch) + jnp.sum(jnp.exp(log_penalty) * w**2) / 2


def _logistic_outer(params: PyTree, log_penalty: Array, batch: PyTree) -> Array:
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ params["w"] + params["b"])))


def _logistic_inner(params: PyTree, log_penalty: Array, batch: PyTree) -> Array:
    squares = jnp.sum(params["w"] ** 2) + params["b"] ** 2
    return _logistic_outer(params, log_penalty, batch) + jnp.exp(log_penalty) * squares / 2


def _mlp_outer(params: PyTree, decay: Array, batch: PyTree) -> Array:
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["W"] + params["hidden"]["b"])
    prediction = hidden @ params["out"]["W"] + params["out"]["b"]
    return jnp.mean((prediction - batch["y"]) ** 2) / 2


def _mlp_inner(params: PyTree, decay: Array, batch: PyTree) -> Array:
    squares = jax.tree.map(lambda leaf: jnp.sum(leaf**2), params)
    layers = {name: sum(jax.tree.leaves(squares[name])) for name in decay}
    penalty = sum(jnp.exp(decay[name]) * layers[name] for name in decay)
    return _mlp_outer(params, decay, batch) + penalty / 2


# One object each, so that every case of one name shares its compilations.
_RIDGE = Problem(_ridge_inner, _ridge_outer, quadratic=True)
_LOGISTIC = Problem(_logistic_inner, _logistic_outer)
_MLP = Problem(_mlp_inner, _mlp_outer)
