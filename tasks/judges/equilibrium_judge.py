"""Hypergradients of an equilibrium layer against dense solves, and networks without a loop."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

import bilevel as bl
from tasks.base import Metrics, PyTree
from tasks.datasets.images import Images, Rows, cast

STEPS = (5, 10, 20, 40, 80)


class Exact(NamedTuple):
    """Equilibria ``[n, p]``, the hypergradient, and rates of convergence near each, ``[n]``."""

    states: np.ndarray
    grad: dict[str, np.ndarray]
    rates: np.ndarray


class Cost(NamedTuple):
    """What a hypergradient of so many ``steps`` costs, in bytes and seconds; how wrong it is."""

    name: str
    steps: int
    error: float
    memory: int
    seconds: float


@dataclass(frozen=True)
class Judge:
    """The rows of a run, its problem, and what is held against it."""

    parts: Images
    problem: bl.Problem
    data: bl.Data
    contraction: float
    decay: float
    units: int
    seed: int

    def solve_densely(self, hyper: PyTree) -> Exact:
        """Solve for the states and the adjoint of each training row alone, in NumPy and float64."""
        h = {name: np.asarray(leaf, float) for name, leaf in hyper.items()}
        X, y = np.asarray(self.parts.train[0], float), self.parts.train[1]
        lengths = np.abs(h["W"]).sum(1, keepdims=True)
        W = h["W"] * (self.contraction / np.maximum(lengths, self.contraction))
        drive = X @ h["U"].T + h["b"]
        states = _iterate(W, drive)
        slope = 1 - states**2
        scores = states @ h["V"].T + h["c"]
        likely = np.exp(scores - scores.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        off = (likely - np.eye(self.parts.classes)[y]) / len(y)
        jacobians = slope[:, :, None] * W
        systems = np.eye(self.units) - jacobians.transpose(0, 2, 1)
        u = slope * np.linalg.solve(systems, (off @ h["V"])[:, :, None])[:, :, 0]
        # Through the rows of W that were shortened: the part along what shortens them is gone.
        to_row, sign = u.T @ states, np.sign(h["W"])
        along = np.sum(to_row * h["W"], axis=1, keepdims=True) / lengths
        shortened = (to_row - along * sign) * self.contraction / lengths
        grad = {
            "W": np.where(lengths > self.contraction, shortened, to_row),
            "U": u.T @ X,
            "b": u.sum(0),
            "V": off.T @ states,
            "c": off.sum(0),
        }
        for name in "WUV":
            grad[name] = grad[name] + 2 * self.decay * h[name]
        return Exact(states, grad, np.abs(np.linalg.eigvals(jacobians)).max(1))

    def measure(self, hyper: PyTree, steps: Sequence[int] = STEPS) -> Iterator[Cost]:
        """Yield the costs of each estimator, each from states of 0, without a warm start."""
        exact = self.solve_densely(hyper).grad
        zeros = jnp.zeros((len(self.parts.train[1]), self.units), self.data.inner.dtype)
        at = hyper, zeros, self.data, jax.random.key(self.seed)
        for name, count in ((name, count) for name in CANDIDATES for count in steps):
            program = jax.jit(_estimate(self.problem, CANDIDATES[name](count))).lower(*at).compile()
            found: Any = jax.block_until_ready(program(*at))
            seconds = min(_time(program, at) for _ in range(5))
            analysis: Any = program.memory_analysis()
            error = _distance(found, exact) / _distance({k: 0 for k in exact}, exact)
            yield Cost(name, count, error, analysis.temp_size_in_bytes, seconds)

    def metrics(self, hyper: PyTree) -> Metrics:
        """Score the equilibria of the test rows."""
        X, y = cast(*self.parts.test)
        zeros = jnp.zeros((len(y), self.units), X.dtype)
        data, key = bl.Data(inner=X, outer=(X, y)), jax.random.key(self.seed)
        solver = bl.Anderson(tol=1e-5)
        states = bl.solve(self.problem, solver, hyper, zeros, data, key, steps=100)
        return _score(jax.nn.softmax(states @ hyper["V"].T + hyper["c"]), self.parts.test)

    def baselines(self) -> dict[str, Metrics]:
        """Fit what has no loop to the same rows, with the same decay, by scikit-learn."""
        X, y = self.parts.train
        C, alpha = 1 / (2 * self.decay * len(y)), 2 * self.decay * len(y)
        fit: dict[str, Any] = {"alpha": alpha, "activation": "tanh", "solver": "lbfgs"}
        fit |= {"max_iter": 5000, "max_fun": 10**6, "random_state": self.seed}
        p = self.units
        models = {
            "logistic regression": LogisticRegression(C=C, max_iter=5000),
            "network of one hidden layer": MLPClassifier((p,), **fit),
            "network of two, as many weights": MLPClassifier((p, p), **fit),
        }
        return {
            name: _score(model.fit(X, y).predict_proba(self.parts.test[0]), self.parts.test)
            for name, model in models.items()
        }


CANDIDATES: dict[str, Any] = {
    "Implicit, Anderson": lambda k: bl.Implicit(
        bl.Anderson(), k, linear=bl.GMRES(tol=1e-6, max_steps=k, restart=min(k, 10))
    ),
    "Reverse, Picard": lambda k: bl.Reverse(bl.Picard(), k, memory="full"),
    "Reverse, Picard, checkpoints": lambda k: bl.Reverse(bl.Picard(), k, memory="checkpoint"),
}


def _iterate(W: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """Return the fixed point of ``tanh(z W^T + drive)`` to rounding."""
    states = np.zeros_like(drive)
    for _ in range(100_000):
        after = np.tanh(states @ W.T + drive)
        if np.max(np.abs(after - states)) < 1e-15:
            break
        states = after
    return states


def _estimate(problem: bl.Problem, estimator: Any) -> Any:
    def gradient(hyper: PyTree, states: jax.Array, data: bl.Data, key: jax.Array) -> PyTree:
        at = hyper, states, data, key
        return bl.hypergradient(problem, estimator, *at, evidence="off")[0].grad

    return gradient


def _time(program: Any, at: tuple) -> float:
    before = time.process_time()
    jax.block_until_ready(program(*at))
    return time.process_time() - before


def _distance(a: Any, b: Any) -> float:
    return float(np.sqrt(sum(np.sum((np.asarray(a[k], float) - b[k]) ** 2) for k in b)))


def _score(likely: Any, rows: Rows) -> Metrics:
    likely = np.asarray(likely, float)
    likely /= likely.sum(1, keepdims=True)
    wrong = np.mean(np.argmax(likely, axis=1) != rows[1])
    loss = log_loss(rows[1], likely, labels=np.arange(likely.shape[1]))
    return {"test_error": float(wrong), "test_log_loss": float(loss)}


def draw_hypergradients(judge: Judge, figure: Any, hyper: PyTree, params: PyTree) -> None:
    """Draw error, memory and time of the hypergradient at the weights found over the steps."""
    del params
    costs = list(judge.measure(hyper))
    panels = figure.subplots(1, 3)
    titles = {"error": "relative error", "memory": "memory, MiB", "seconds": "CPU milliseconds"}
    scales = {"error": 1.0, "memory": 2**-20, "seconds": 1e3}
    for axes, (field, title) in zip(panels, titles.items(), strict=True):
        for name in CANDIDATES:
            mine = [c for c in costs if c.name == name]
            heights = [scales[field] * getattr(c, field) for c in mine]
            axes.plot([c.steps for c in mine], heights, "o-", label=name)
        axes.set(title=title, xlabel="steps", xscale="log", yscale="log")
        for axis, ticks in ((axes.xaxis, STEPS), (axes.yaxis, (1, 2, 5, 10, 20, 50))):
            if axis is axes.xaxis or field != "error":
                axis.set_ticks(ticks, [str(tick) for tick in ticks])
                axis.set_ticks([], minor=True)
        axes.grid(alpha=0.3)
    panels[2].legend(fontsize=8, loc="lower right")
