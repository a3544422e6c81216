"""The six problems of `outer.py`, with oracles that are exact or nearly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import bilevel as bl

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LONGEST = 1.99  # bound of the step sizes of `schedule`; the largest curvature is 1


class Case(NamedTuple):
    """What `tune` needs beside the outer rule, and the value that counts as arrived.

    `bar` is that of the reference answers, if there is one; `budget`, the calls of each Adam.
    """

    problem: bl.Problem
    estimator: Any
    hyper: Any
    params: Any
    data: bl.Data
    bar: float | None
    budget: int


def lasso() -> Case:
    """One penalty of a lasso; the derivative is discontinuous where the support changes."""
    X, y = load_diabetes(return_X_y=True)
    X = PolynomialFeatures(2, include_bias=False).fit_transform(StandardScaler().fit_transform(X))
    rows = np.random.RandomState(0).permutation(len(y))
    train, validation = rows[:150], rows[150:300]
    X = StandardScaler().fit(X[train]).transform(X)
    distinct = [
        j
        for j in range(X.shape[1])
        if all(abs(X[train, j] @ X[train, i]) < (1 - 1e-9) * 150 for i in range(j))
    ]
    X, y = X[:, distinct], (y - y[train].mean()) / y[train].std()
    data = bl.Data(inner=(X[train], y[train]), outer=(X[validation], y[validation]))
    solver = bl.FISTA(float(150 / np.linalg.eigvalsh(X[train].T @ X[train])[-1]))
    start = np.log(np.abs(X[train].T @ y[train]).max() / 300)
    problem = bl.Problem(_squares, _squares, prox=_soft)
    estimator = bl.Implicit(solver, steps=1000)
    return Case(problem, estimator, start, np.zeros(X.shape[1]), data, 0.306575, 40)


def _squares(w: Any, log_alpha: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def _soft(z: Any, log_alpha: Any, step: Any) -> Any:
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - step * jnp.exp(log_alpha), 0)


def ijcnn1() -> Case:
    """A penalty for each of 22 inputs of a logistic regression on 49 990 rows."""
    with np.load(_shared("ijcnn1")) as file:
        part = {name: np.asarray(file[name], float) for name in file.files}
    data = bl.Data(inner=(part["X_train"], part["y_train"]), outer=(part["X_test"], part["y_test"]))
    estimator = bl.Implicit(bl.Newton(bl.Dense(), tol=1e-9), steps=12, linear=bl.Dense())
    problem = bl.Problem(_penalised_logistic, _logistic)
    return Case(problem, estimator, np.full(22, -2.0), np.zeros(22), data, 0.2060, 100)


def _logistic(w: Any, log_penalty: Any, batch: Any) -> Any:
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


def _penalised_logistic(w: Any, log_penalty: Any, batch: Any) -> Any:
    return _logistic(w, log_penalty, batch) + jnp.sum(jnp.exp(log_penalty) * w**2) / 2


def distillation() -> Case:
    """Ten images from which ridge regression learns the digits; in the dual, 100 params."""
    with np.load(_shared("mnist")) as file:
        X, y = file["x_train"], file["y_train"]
    X = X.reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196) / 255
    rows = np.random.RandomState(5).permutation(len(y))[:5000]
    X, y = X[rows], y[rows]
    X = X - X.mean(0)
    X = X / np.sqrt((X**2).sum(1).mean())
    start = np.stack([X[y == digit][0] for digit in range(10)])
    targets = np.eye(10) - 0.1
    data = bl.Data(inner=(np.arange(10), targets), outer=(X, targets[y]))
    problem = bl.Problem(_dual_ridge, _distilled, quadratic=True)
    return Case(problem, bl.ClosedForm(), start, np.zeros((10, 10)), data, 0.1965, 400)


def _dual_ridge(a: Any, images: Any, batch: Any) -> Any:
    _, targets = batch
    return jnp.sum(a * (images @ (images.T @ a) + 1e-2 * a)) / 2 - jnp.sum(a * targets)


def _distilled(a: Any, images: Any, batch: Any) -> Any:
    X, targets = batch
    return jnp.mean(jnp.sum((X @ (images.T @ a) - targets) ** 2, 1)) / 2


def quadratics(examples: int = 1024, dim: int = 100) -> Case:
    """Random quadratics of both levels, with as many variables each."""
    from tests.single_loop.quadratics import PROBLEM, make

    made = make(examples, dim)
    start = made.start
    return Case(PROBLEM, bl.ClosedForm(), start[0], start[1], made.data, None, 100)


def schedule() -> Case:
    """The step sizes of 100 SGD steps on a noisy quadratic, whose expected loss is known."""
    problem = bl.Problem(_nothing, _expected_loss, quadratic=True)
    data = bl.Data(inner=np.zeros(1), outer=np.arange(1.0, 101.0))
    start = np.full(100, np.log(0.1))
    return Case(problem, bl.ClosedForm(), start, np.zeros(()), data, 0.0140, 120)


def _nothing(w: Any, log_step: Any, batch: Any) -> Any:
    return w**2 / 2


def _expected_loss(w: Any, log_step: Any, batch: Any) -> Any:
    curvature, noise, steps = 1 / batch, batch * 1e-2, jnp.minimum(jnp.exp(log_step), LONGEST)

    def move(second_moment: Any, a: Any) -> Any:
        return (1 - a * curvature) ** 2 * second_moment + (a * curvature) ** 2 * noise, None

    moments, _ = jax.lax.scan(move, jnp.ones_like(batch), steps)
    return jnp.sum(curvature * moments) / 2


def overfit() -> Case:
    """One weight decay per weight, 7850 of them, memorises 50 validation digits."""
    with np.load(_shared("mnist")) as file:
        X, y = file["x_train"].reshape(-1, 784) / 255, file["y_train"].astype(np.int32)
    rows = np.random.RandomState(0).permutation(len(y))
    train, validation = rows[:50], rows[50:100]
    data = bl.Data(inner=(X[train], y[train]), outer=(X[validation], y[validation]))
    params = {"W": np.zeros((784, 10)), "b": np.zeros(10)}
    log_decay = jax.tree.map(lambda w: np.full(w.shape, -4.0), params)
    solver = bl.SGD(step_size=0.2, momentum=0.9)
    estimator = bl.Implicit(solver, steps=100, linear=bl.CG(tol=1e-10, max_steps=30))
    return Case(bl.Problem(_decayed, _cross_entropy), estimator, log_decay, params, data, 0.05, 50)


def _cross_entropy(params: Any, log_decay: Any, batch: Any) -> Any:
    X, y = batch
    log_step = X @ params["W"] + params["b"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(log_step, y))


def _decayed(params: Any, log_decay: Any, batch: Any) -> Any:
    decays = jax.tree.map(lambda w, h: jnp.sum(jnp.exp(h) * w**2) / 2, params, log_decay)
    return _cross_entropy(params, log_decay, batch) + sum(jax.tree.leaves(decays))


def _shared(name: str) -> Path:
    path = SHARED / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{name}.npz is not in ../shared/data")
    return path


CASES: dict[str, Callable[[], Case]] = {
    "lasso": lasso,
    "ijcnn1": ijcnn1,
    "distillation": distillation,
    "quadratics": quadratics,
    "schedule": schedule,
    "overfit": overfit,
}
