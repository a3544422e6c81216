"""Problems with known hypergradients, and settings from hopeless to more than enough."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.testing import dense_hypergradient


@dataclass(frozen=True)
class Case:
    """A problem, and SGD settings that suit it."""

    name: str
    problem: bl.Problem
    data: bl.Data
    hyper: Any
    params: Any
    solver: Any
    steps: int

    def exact(self) -> np.ndarray:
        """The hypergradient at the inner minimiser, dense, in float64."""
        grad = dense_hypergradient(self.problem, self.hyper, self.params, self.data)[1]
        return np.asarray(ravel_pytree(grad)[0], float)


def linear_model(
    kind: str,
    n: int,
    d: int,
    *,
    penalty: float = -2.0,
    smallest: float = 1.0,
    heavy: bool = False,
    per_feature: bool = True,
    seed: int = 0,
) -> tuple[bl.Problem, bl.Data, jax.Array, jax.Array]:
    """Ridge, logistic regression or a quartic loss on random rows, columns 1 .. ``smallest``."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(1, smallest, d)
    X = rng.standard_normal((2 * n, d)) * sizes
    noise = rng.standard_t(3, 2 * n) if heavy else rng.standard_normal(2 * n)
    y = X @ (rng.standard_normal(d) / sizes) + noise
    y = np.sign(y) if kind == "logistic" else y

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        X, y = batch
        z = X @ w
        if kind == "logistic":
            return jnp.mean(jnp.logaddexp(0, -y * z))
        r = z - y
        return jnp.mean(r**2) / 2 + (jnp.mean(r**4) / 200 if kind == "quartic" else 0)

    def inner(w: jax.Array, h: jax.Array, batch: Any) -> jax.Array:
        return loss(w, batch) + jnp.sum(jnp.exp(h) * w**2) / 2

    data = bl.Data(inner=(X[:n], y[:n]), outer=(X[n:], y[n:]))
    hyper = jnp.full(d if per_feature else (), penalty)
    problem = bl.Problem(inner, lambda w, h, b: loss(w, b), quadratic=kind == "ridge")
    return problem, jax.tree.map(jnp.asarray, data), hyper, jnp.zeros(d)


def weighted_rows(n: int, d: int, seed: int = 0) -> tuple[bl.Problem, bl.Data, Any, Any]:
    """One weight per training example, ridge."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((2 * n, d))
    y = X @ rng.standard_normal(d) + rng.standard_normal(2 * n)

    def inner(w: jax.Array, h: jax.Array, batch: Any) -> jax.Array:
        X, y, i = batch
        return jnp.mean(jax.nn.sigmoid(h[i]) * (X @ w - y) ** 2) / 2 + 0.05 * jnp.sum(w**2)

    def outer(w: jax.Array, h: jax.Array, batch: Any) -> jax.Array:
        X, y = batch
        return jnp.mean((X @ w - y) ** 2) / 2

    data = bl.Data(inner=(X[:n], y[:n], np.arange(n)), outer=(X[n:], y[n:]))
    return bl.Problem(inner, outer), jax.tree.map(jnp.asarray, data), jnp.zeros(n), jnp.zeros(d)


def network(n: int, seed: int = 0) -> tuple[bl.Problem, bl.Data, Any, Any]:
    """Two tanh units with a strong penalty: one minimum near the start."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((2 * n, 2))
    y = np.tanh(X[:, 0]) + 0.3 * rng.standard_normal(2 * n)

    def loss(w: Any, batch: Any) -> jax.Array:
        X, y = batch
        return jnp.mean((jnp.tanh(X @ w["in"]) @ w["out"] - y) ** 2) / 2

    def inner(w: Any, h: jax.Array, batch: Any) -> jax.Array:
        return loss(w, batch) + jnp.exp(h) * (jnp.sum(w["in"] ** 2) + jnp.sum(w["out"] ** 2)) / 2

    params = {"in": jnp.array([[1.0, 0.1], [0.1, 0.5]]), "out": jnp.array([0.7, 0.2])}
    data = bl.Data(inner=(X[:n], y[:n]), outer=(X[n:], y[n:]))
    return (
        bl.Problem(inner, lambda w, h, b: loss(w, b)),
        jax.tree.map(jnp.asarray, data),
        jnp.array(-1.5),
        params,
    )


def _in_single_precision(problem: bl.Problem, *arrays: Any) -> tuple[bl.Problem, Any, Any, Any]:
    data, hyper, params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    return problem, data, hyper, params


def cases(quick: bool) -> list[Case]:
    """The problems of the first table."""
    sgd = partial(bl.SGD, batch_size=8)
    ridge = partial(linear_model, "ridge")
    listed = [
        Case("ridge, 1 param", *ridge(40, 1), sgd(0.05), 400),
        Case("ridge, 5 params", *ridge(60, 5), sgd(0.05), 600),
        Case("ridge, one penalty", *ridge(60, 5, per_feature=False), sgd(0.05), 600),
        Case("logistic, 4 params", *linear_model("logistic", 80, 4), sgd(0.3), 600),
        Case("heavy tails", *ridge(60, 4, heavy=True), sgd(0.03), 800),
        Case("momentum", *ridge(60, 4), sgd(0.01, momentum=0.8), 800),
    ]
    if quick:
        return listed
    return [
        *listed,
        Case("ridge, 40 params", *ridge(400, 40), sgd(0.01, batch_size=32), 2000),
        Case("ridge, ill-conditioned", *ridge(60, 5, smallest=0.1), sgd(0.05), 3000),
        Case("Nesterov", *ridge(60, 4), sgd(0.01, momentum=0.8, nesterov=True), 800),
        Case("epochs", *ridge(64, 4), sgd(0.05, sampling="epoch"), 600),
        Case("weight per example", *weighted_rows(40, 3), sgd(0.05), 800),
        Case("network", *network(40), sgd(0.1), 1500),
        Case("near the limit", *ridge(60, 4), sgd(0.25), 400),
        Case("quartic", *linear_model("quartic", 60, 4), sgd(0.03), 800),
        Case("weak penalty", *linear_model("logistic", 200, 4, penalty=-4.0), sgd(0.5), 3000),
        Case("few steps", *ridge(60, 4), sgd(0.02), 60),
        Case("float32", *_in_single_precision(*ridge(60, 5)), sgd(0.05), 600),
    ]


def estimators(case: Case) -> Iterator[tuple[str, Any]]:
    """Those that report a standard error, at the settings of the case."""
    steps, half = case.steps, case.steps // 2
    averaged = bl.Forward(case.solver, steps, average=half)
    yield "Replicated(Forward, 5)", bl.Replicated(averaged, 5)
    yield "Replicated(Reverse, 5)", bl.Replicated(bl.Reverse(case.solver, steps), 5)
    yield (
        "Replicated(Implicit, 5)",
        bl.Replicated(bl.Implicit(case.solver, steps, average=half, bias=True), 5),
    )
    if case.solver.sampling == "iid":
        yield "Predicted(Forward)", bl.Predicted(averaged)
        yield "Predicted(Implicit)", bl.Predicted(bl.Implicit(case.solver, steps, average=half))
    if ravel_pytree(case.hyper)[0].size > 1:
        yield "Forward(directions=8)", bl.Forward(case.solver, steps, average=half, directions=8)


def random_case(seed: int) -> tuple[Case, str, Any]:
    """A problem, a solver and an estimator drawn at random; from hopeless to more than enough."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["ridge", "logistic", "quartic"])
    made = linear_model(
        kind,
        int(rng.integers(30, 120)),
        int(rng.integers(1, 9)),
        seed=seed,
        penalty=float(rng.uniform(-6, 0)),
        smallest=float(10 ** rng.uniform(-2, 0)),
        per_feature=bool(rng.integers(2)),
    )
    steps = int(10 ** rng.uniform(1, 3.6))
    size = float(10 ** rng.uniform(-2, -0.5))
    noisy = bl.SGD(size, batch_size=int(rng.integers(4, 33)))
    quiet = bl.GradientDescent(size)
    solver = noisy if rng.integers(2) else quiet
    choices: list[tuple[str, Callable[[], Any]]] = [
        ("Forward", lambda: bl.Forward(solver, steps, average=steps // 2)),
        ("Reverse", lambda: bl.Reverse(solver, steps)),
        ("Reverse, truncated", lambda: bl.Reverse(solver, steps, truncate=max(1, steps // 10))),
        ("Implicit", lambda: bl.Implicit(solver, steps, average=steps // 2)),
        ("Replicated", lambda: bl.Replicated(bl.Forward(solver, steps, average=steps // 2), 4)),
        ("OneStep", lambda: bl.OneStep(solver, steps)),
        ("LBFGS", lambda: bl.Implicit(bl.LBFGS(tol=10.0 ** -rng.integers(1, 6)), 100)),
        ("Auto", lambda: bl.Auto()),
    ]
    name, make = choices[seed % len(choices)]
    return Case(f"{kind} {seed}", *made, solver, steps), name, make()
