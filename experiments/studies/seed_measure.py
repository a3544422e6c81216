r"""What the studies of open questions share: problems, runs over many keys, and what a run costs.

Cost is counted in gradients of single examples. Every call of ``evidence.counts``, be it a
gradient, a Hessian product, a pushed tangent or a pulled cotangent, counts the examples that it
looks at:

    SGD, SAGA: B a step      SVRG: 2 B + n / period a step      full batch: n a step

Beside these: a full pass (n) for the cross term of `Implicit`, which reads all data. Left out,
for all alike: passes that serve the evidence alone (the final residual of the inner problem and of
the linear system), and the outer gradient. Counting second-order calls twice, as a flop count
would, changes every estimator's cost at one hyperparameter by the same factor of at most 1.5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8B4513")
MARKERS = "osD^vPX*"


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


def design(
    seed: int, rows: int, features: int, spread: float = 0.5
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Rows of unit mean square length, scales 1 +- ``spread``, a signal, and the generator."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features)) * np.linspace(1 + spread, 1 - spread, features)
    X /= np.sqrt((X**2).sum(1).mean())
    return X, 2 * rng.standard_normal(features), rng


def ridge(seed: int, examples: int = 64, features: int = 8, hyper: Any = -2.5) -> Setting:
    """Ridge regression with log penalties ``hyper``, one or one per feature; quadratic."""
    X, w, rng = design(seed, 2 * examples, features)
    return _setting("ridge", RIDGE, X, X @ w + 0.5 * rng.standard_normal(len(X)), hyper)


def logistic(seed: int, examples: int = 64, features: int = 8, hyper: Any = -3.0) -> Setting:
    """Logistic regression with log penalties ``hyper``; not quadratic."""
    X, w, rng = design(seed, 2 * examples, features)
    return _setting("logistic", LOGISTIC, X, np.sign(X @ w + 0.5 * rng.standard_normal(len(X))), hyper)


def _setting(name: str, problem: bl.Problem, X: Any, y: Any, hyper: Any) -> Setting:
    n = len(y) // 2
    data = bl.Data(inner=(X[:n], y[:n]), outer=(X[n:], y[n:]))
    hyper, params = np.asarray(hyper, float), np.zeros(X.shape[1])
    solution = bl.testing.dense_solution(problem, hyper, params, data)
    _, exact = bl.testing.dense_hypergradient(problem, hyper, params, data)
    hessian = jax.hessian(problem.inner)(solution, hyper, data.inner)
    bend = 0.25 if problem is LOGISTIC else 1.0
    largest = bend * (X[:n] ** 2).sum(1).max() + np.exp(hyper).max()
    smallest = float(np.linalg.eigvalsh(hessian)[0])
    return Setting(name, problem, hyper, params, data, np.atleast_1d(exact), smallest, float(largest))


class Sample(NamedTuple):
    """Hypergradients of independent runs, ``[runs, p]``, and the mean cost of one."""

    grads: np.ndarray
    cost: float


@partial(jax.jit, static_argnames="problem")
def _many(problem: bl.Problem, estimator: Any, hyper: Any, params: Any, data: Any, keys: Any) -> Any:
    def one(key: Any) -> Any:
        estimate, _ = bl.hypergradient(problem, estimator, hyper, params, data, key)
        return estimate.grad, estimate.evidence.counts

    return jax.vmap(one)(keys)


def sample(at: Setting, estimator: Any, runs: int, seed: int) -> Sample:
    """``runs`` independent hypergradients, computed side by side."""
    keys = jax.random.split(jax.random.key(seed), runs)
    grads, counts = _many(at.problem, estimator, at.hyper, at.params, at.data, keys)
    mean = bl.Counts(*(float(np.mean(x)) for x in counts))
    return Sample(np.asarray(grads).reshape(runs, -1), price(estimator, mean, at.examples))


def price(estimator: Any, counts: bl.Counts, n: int) -> float:
    """``counts`` of one run in gradients of single examples, see the head of this file."""
    if isinstance(estimator, bl.Richardson):
        one = bl.Counts(*(c / 2 for c in counts))
        return 2 * price(estimator.estimator, one, n)
    if isinstance(estimator, bl.Replicated):
        one = bl.Counts(*(c / estimator.n for c in counts))
        return estimator.n * price(estimator.estimator, one, n)
    step = examples_per_step(estimator.solver, n)
    cost = (counts.gradients - 1 + counts.jvps + counts.vjps) * step
    if isinstance(estimator, bl.Implicit):
        products = counts.hvps - 1  # the last one serves the residual
        linear = estimator.linear
        cost += products * (linear.batch_size if isinstance(linear, bl.SGDLinear) else n) + n
    return float(cost)


def examples_per_step(solver: Any, n: int) -> float:
    """How many examples one step of the solver looks at."""
    batch = getattr(solver, "batch_size", None) or n
    if isinstance(solver, bl.SVRG):
        return 2 * batch + n / (solver.period or math.ceil(2 * n / batch))
    return batch


class Accuracy(NamedTuple):
    """Relative to ``|exact|``: mean squared error, bias per component, each with standard error."""

    mse: float
    mse_error: float
    bias: np.ndarray
    bias_error: np.ndarray
    sd: float

    @property
    def resolved(self) -> float:
        """The largest ``|bias| / standard error`` of all components."""
        return float(np.max(np.abs(self.bias) / self.bias_error))


def accuracy(grads: np.ndarray, exact: np.ndarray) -> Accuracy:
    """Of independent hypergradients ``[runs, p]`` against the exact one, ``[p]``."""
    size, runs = np.linalg.norm(exact), len(grads)
    errors = (grads - exact) / size
    squares = (errors**2).sum(1)
    return Accuracy(
        float(squares.mean()),
        float(squares.std(ddof=1) / runs**0.5),
        errors.mean(0),
        errors.std(0, ddof=1) / runs**0.5,
        float(np.sqrt(errors.var(0, ddof=1).sum())),
    )


class Chosen(NamedTuple):
    """The best of several settings: its accuracy on fresh runs, its cost, which one it is."""

    accuracy: Accuracy
    cost: float
    setting: float


def best(
    at: Setting, make: Callable[[float], Any], settings: Any, runs: int, seed: int
) -> Chosen | None:
    """The setting of least error on ``runs`` runs, measured on as many others; ``None``: none is finite.

    The second batch of runs keeps the choice from flattering its result.
    """
    found = None
    for setting in settings:
        grads = sample(at, make(setting), runs, seed).grads
        mse = accuracy(grads, at.exact).mse
        if np.isfinite(mse) and (found is None or mse < found[0]):
            found = mse, setting
    if found is None:
        return None
    fresh = sample(at, make(found[1]), runs, seed + 1)
    return Chosen(accuracy(fresh.grads, at.exact), fresh.cost, float(found[1]))


def ratio(over: Accuracy, under: Accuracy) -> tuple[float, float]:
    """The ratio of two mean squared errors with its standard error (delta method)."""
    value = over.mse / under.mse
    return value, value * math.hypot(over.mse_error / over.mse, under.mse_error / under.mse)


def slope(x: Any, y: Any) -> float:
    """Least-squares slope of ``log y`` against ``log x``."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def pm(value: float, error: float) -> str:
    """``value +- error`` as people write it."""
    return f"{value:.3g} ± {error:.1g}"


def verdict(value: float, error: float, better: str, worse: str, against: float = 1.0) -> str:
    """``better`` or ``worse`` where value lies four standard errors below or above, else a tie."""
    if abs(value - against) < 4 * error:
        return "not told apart from"
    return better if value < against else worse
