"""Multinomial tasks against scikit-learn, dense minimisers, differences; no dense row is made."""

import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.extend.core import jaxprs_in_params
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

import bilevel as bl
from tasks.base import Task
from tasks.datasets import sparse
from tasks.datasets.splits import Split, split
from tasks.multinomial import GRID, PENALTIES, multinomial

SHARES: dict[str, Any] = dict(validation=0.3, test=0.3, seed=0)


def counts(n: int, d: int, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Texts of three subjects, each with some words of its own; the last word is never used."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    rates = np.full((n, d), 3.0 / d)
    rates[np.arange(n)[:, None], 3 * np.arange(d // 9) + y[:, None]] *= 5
    rates[:, -1] = 0
    return sp.csr_matrix(rng.poisson(rates).astype(float)), y


def write(folder: Path, n: int, d: int) -> str:
    X, y = counts(n, d)
    names = np.array(["art", "law", "sea"])[y]
    parts = {f"X_{part}": getattr(X, part) for part in sparse.PARTS}
    np.savez(folder / "texts.npz", **parts, y=names)  # pyright: ignore
    return str(folder / "texts.npz")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("texts"), 90, 30)


@cache
def make(path: str, penalty: str = "global", weighting: str = "tfidf") -> Task:
    with jax.enable_x64(True):
        return multinomial(path, penalty, weighting=weighting, start=0.003, seed=0)


@cache
def dense(path: str) -> tuple[np.ndarray, np.ndarray, Split]:
    """All rows filled in, their labels, and which of them train."""
    table = sparse.read(path)
    parts = split(table, rows=None, **SHARES)
    X = sparse.weighted(sp.csr_matrix(table.X), parts.train, "tfidf").toarray()
    return X[:, X.any(0)], table.y, parts


def random_hyper(made: Task) -> np.ndarray:
    return np.random.default_rng(0).normal(-6.0, 0.7, np.shape(made.hyper))


def fitted(X: np.ndarray, y: np.ndarray, hyper: np.ndarray) -> np.ndarray:
    """Weights, the intercepts last, that minimise the penalised loss: Newton on dense arrays."""
    n, C = len(y), y.max() + 1
    X, target = np.hstack([X, np.ones((n, 1))]), np.eye(C)[y]
    s = np.vstack([np.broadcast_to(np.exp(hyper), (X.shape[1] - 1, C)), np.zeros((1, C))])
    W = np.zeros(s.shape)
    for _ in range(30):
        P = np.exp(log_softmax(X @ W, axis=1))
        slope = X.T @ (P - target) / n + s * W
        curved = np.einsum("nc,ce->nce", P, np.eye(C)) - np.einsum("nc,ne->nce", P, P)
        H = np.einsum("nj,nk,nce->jcke", X, X, curved, optimize=True).reshape(W.size, -1) / n
        if np.max(np.abs(slope)) < 1e-13:
            return W
        # A shift of all intercepts changes nothing: the shortest of the solutions.
        W -= np.linalg.lstsq(H + np.diag(s.ravel()), slope.ravel())[0].reshape(W.shape)
    raise AssertionError("Newton's method did not converge")


def judged(path: str, hyper: np.ndarray, rows: str, tested: str) -> float:
    """Log loss on the rows ``tested`` of the dense fit to ``rows``."""
    X, y, parts = dense(path)
    used, held = getattr(parts, rows), getattr(parts, tested)
    W = fitted(X[used], y[used], hyper)
    return log_loss(y[held], np.exp(log_softmax(X[held] @ W[:-1] + W[-1], axis=1)))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_metrics_are_those_of_dense_fits(penalty: str, texts: str) -> None:
    made = make(texts, penalty)
    hyper = random_hyper(made)
    metrics = made.metrics(hyper, None)
    assert list(metrics) == ["test_log_loss", "test_accuracy"]
    expected = judged(texts, hyper, "development", "test")
    assert metrics["test_log_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", ["global", "per_feature"])
def test_metrics_are_those_of_scikit_learn(penalty: str, texts: str) -> None:
    """One penalty per column is one for all on columns divided by its root."""
    made, (X, y, parts) = make(texts, penalty), dense(texts)
    hyper = random_hyper(made)
    scaled, rows = X / np.exp(hyper / 2).ravel(), parts.development
    model = LogisticRegression(C=1 / len(rows), tol=1e-10, max_iter=10_000)
    found = model.fit(scaled[rows], y[rows]).predict_proba(scaled[parts.test])
    metrics, tested = made.metrics(hyper, None), y[parts.test]
    assert metrics["test_log_loss"] == pytest.approx(log_loss(tested, found), rel=1e-5)
    accuracy = accuracy_score(tested, np.argmax(found, axis=1))
    assert metrics["test_accuracy"] == pytest.approx(accuracy)


def test_losses_are_log_losses(texts: str, x64) -> None:
    X, y, parts = dense(texts)
    rng = np.random.default_rng(1)
    W, b = rng.normal(size=(X.shape[1], 3)), np.append(rng.normal(size=2), 0)
    params = {"weights": W, "intercept": b[:2]}
    for penalty in PENALTIES:
        made = make(texts, penalty)
        hyper = random_hyper(made)
        inner, outer = jax.jit(made.problem.inner), jax.jit(made.problem.outer)
        fit, score = (
            log_loss(y[rows], np.exp(log_softmax(X[rows] @ W + b, axis=1)))
            for rows in (parts.train, parts.validation)
        )
        shrunk = np.sum(np.exp(hyper) * W**2) / 2
        assert inner(params, hyper, made.data.inner) == pytest.approx(fit + shrunk)
        assert outer(params, hyper, made.data.outer) == pytest.approx(score)


@pytest.mark.extended
def test_hypergradient_is_the_central_difference_of_dense_fits(texts: str, x64) -> None:
    """A penalty per weight; those that share theirs have the sum, by the chain rule."""
    made = make(texts, "per_weight")
    hyper = random_hyper(made)
    estimator = bl.Implicit(bl.LBFGS(), steps=200, average=0, linear=bl.CG(tol=1e-11))
    estimate, _ = bl.hypergradient(
        made.problem, estimator, jnp.asarray(hyper), made.params, made.data, jax.random.key(0)
    )
    assert estimate.value == pytest.approx(judged(texts, hyper, "train", "validation"), rel=1e-6)
    rng, step = np.random.default_rng(2), 1e-3
    for shape in (hyper.shape, (len(hyper), 1), (1, 3)):
        way = np.broadcast_to(rng.normal(size=shape), hyper.shape)
        up, down = (judged(texts, hyper + s * way, "train", "validation") for s in (step, -step))
        slope = (up - down) / (2 * step)
        assert np.sum(np.asarray(estimate.grad) * way) == pytest.approx(slope, rel=1e-5)


def test_a_batch_of_rows_is_unbiased(texts: str, x64) -> None:
    made = make(texts, "per_class")
    params = jax.tree.map(lambda leaf: leaf + 0.3, made.params)
    params["weights"] = params["weights"] * jnp.arange(3)
    single = jax.tree.map(lambda leaf: leaf[:, None], made.data.inner)
    inner = jax.jit(made.problem.inner)
    losses = jax.jit(jax.vmap(inner, in_axes=(None, None, 0)))(params, made.hyper, single)
    full = inner(params, made.hyper, made.data.inner)
    np.testing.assert_allclose(losses.mean(), full)


def sizes(jaxpr: Any) -> list[int]:
    """Of all arrays that a traced function makes, those of its inner functions too."""
    found = []
    for equation in jaxpr.eqns:
        found += [var.aval.size for var in equation.outvars]
        for inner in jaxprs_in_params(equation.params):
            found += sizes(inner)
    return found


def test_sparse_rows_stay_sparse(tmp_path: Path, monkeypatch) -> None:
    """Losses, gradients and Hessian products; reading, weighting, fits and baselines."""
    monkeypatch.setattr("tasks.multinomial.GRID", GRID[-2:])
    n, d = 300, 3000
    path, filled = write(tmp_path, n, d), 8 * n * d
    tracemalloc.start()
    made = multinomial(path, "per_class", weighting="tfidf", start=0.003)
    baselines = made.baselines()
    made.metrics(made.hyper, None)
    assert tracemalloc.get_traced_memory()[1] < filled / 2
    tracemalloc.stop()
    assert len(baselines) == 3

    def work(params: Any, hyper: Any, data: bl.Data) -> Any:
        slope = jax.grad(made.problem.inner)
        product = jax.jvp(lambda p: slope(p, hyper, data.inner), (params,), (params,))
        return product, jax.value_and_grad(made.problem.outer)(params, hyper, data.outer)

    traced = jax.make_jaxpr(work)(made.params, made.hyper, made.data)
    assert max(sizes(traced.jaxpr)) < len(made.data.inner[1]) * d / 4


def test_equal_problems_are_equal(texts: str) -> None:
    a, b = (multinomial(texts, weighting="tfidf", seed=seed) for seed in (0, 1))
    assert a.problem == b.problem
    shapes = [jax.tree.map(jnp.shape, (t.params, t.data)) for t in (a, b)]
    assert shapes[0] == shapes[1]


def test_baselines_are_what_they_say(texts: str) -> None:
    made, (X, y, parts) = make(texts), dense(texts)
    one, none, plain = made.baselines().values()
    losses = [judged(texts, np.log(g), "train", "validation") for g in GRID]
    best = np.log(GRID[int(np.argmin(losses))])
    assert one == pytest.approx(made.metrics(best, None))
    assert none == pytest.approx(made.metrics(made.hyper, None), rel=1e-5)
    rows = parts.development
    model = LogisticRegression(max_iter=10_000).fit(X[rows], y[rows])
    expected = log_loss(y[parts.test], model.predict_proba(X[parts.test]))
    assert plain["test_log_loss"] == pytest.approx(expected, rel=1e-6)


def test_penalties_are_named_or_summed_up(texts: str) -> None:
    made = make(texts, "per_class")
    described = made.describe(np.log([[1.0, 2.0, 3.0]]))
    assert list(described) == ["penalty of art", "penalty of law", "penalty of sea"]
    assert list(described.values()) == pytest.approx([1.0, 2.0, 3.0])
    many = make(texts, "per_weight")
    assert list(many.describe(many.hyper).values()) == pytest.approx([0.003] * 3)


def test_bad_settings_are_refused(texts: str) -> None:
    with pytest.raises(ValueError, match="penalty='per_word' must be one of global, per_feature"):
        multinomial(texts, "per_word")
    with pytest.raises(ValueError, match="start=0 must be a positive penalty"):
        multinomial(texts, start=0)
    with pytest.raises(ValueError, match="weighting='idf' must be one of tfidf, scale"):
        multinomial(texts, weighting="idf")
    with pytest.raises(ValueError, match="min_rows=99: no column is used by so many of 90 rows"):
        multinomial(texts, min_rows=99)
    with pytest.raises(ValueError, match="width=0 must be a positive number of entries"):
        multinomial(texts, width=0)
