"""Mixtures of text against finite differences, NumPy's own transformer and planted noise."""

import ast
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, log_softmax, softmax

import bilevel as bl
from tasks.datasets.texts import ALPHABET, encode, read_modules, read_texts
from tasks.networks.mixture import mixture
from tasks.parts.transformer import Transformer
from tests.tasks.experiment import run_experiment

SGD = bl.SGD(0.5, batch_size=4)
SMALL: dict[str, Any] = {"rows": 20, "length": 6, "validation": 10, "test": 10, "width": 4}


@pytest.mark.extended
def test_hypergradient_is_the_central_difference(x64: None) -> None:
    """Of three minibatch steps on weighted rows, written as a plain loop."""
    estimator = bl.Reverse(SGD, 3)
    task = mixture(estimator, **SMALL)
    network = task.problem.inner.network  # type: ignore[attr-defined]
    key, weights = jax.random.key(4), jnp.asarray([0.3, 0.2, 0.1, 0.2, 0.15, 0.05])
    at = weights, task.params, task.data, key
    found, _ = bl.hypergradient(task.problem, estimator, *at, evidence="off")
    rows, source = task.data.inner

    def loss(params: Any, weights: Any, k: Any) -> Any:
        x, s = SGD.drawn((rows, source), jax.random.fold_in(key, k), SGD.init(params, (rows,)))
        return 6 * jnp.mean(weights[s] * network.losses(params, x))

    slope = jax.jit(jax.grad(loss))

    def value(weights: Any) -> float:
        params = task.params
        for k in range(3):
            moves = slope(params, weights, k)
            params = jax.tree.map(lambda w, g: w - 0.5 * g, params, moves)
        return float(jnp.mean(network.losses(params, task.data.outer)))

    assert found.value == pytest.approx(value(weights), rel=1e-12)
    way = np.random.default_rng(0).normal(size=6)
    by_hand = (value(weights + 1e-5 * way) - value(weights - 1e-5 * way)) / 2e-5
    assert np.asarray(found.grad) @ way == pytest.approx(by_hand, rel=1e-6)


def _normalise(h: np.ndarray) -> np.ndarray:
    return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)


def test_transformer_is_the_one_written_in_numpy(x64: None) -> None:
    """Attention that looks back, heads side by side; scores by the embeddings."""
    network = Transformer(7, width=8, layers=1, heads=2)
    params = network.draw_weights(5, 0)
    p = jax.tree.map(np.asarray, params["params"])
    row = np.array([3, 1, 4, 1, 5, 2])
    h = p["Embed_0"]["embedding"][row[:-1]] + p["place"]
    parts = p["MultiHeadDotProductAttention_0"]
    x = _normalise(h)
    q, k, v = (np.einsum("td,dhe->the", x, parts[n]["kernel"]) for n in ("query", "key", "value"))
    scores = np.einsum("the,she->hts", q, k) / np.sqrt(4)
    scores = np.where(np.tril(np.ones((5, 5), bool)), scores, -np.inf)
    mixed = np.einsum("hts,she->the", softmax(scores, axis=-1), v)
    h = h + np.einsum("the,hed->td", mixed, parts["out"]["kernel"])
    inside = _normalise(h) @ p["Dense_0"]["kernel"]
    # flax's is the approximation by tanh, within 1e-3 of the exact one
    h = h + (inside * (1 + erf(inside / np.sqrt(2))) / 2) @ p["Dense_1"]["kernel"]
    likely = log_softmax(_normalise(h) @ p["Embed_0"]["embedding"].T, axis=-1)
    by_hand = -np.mean(likely[np.arange(5), row[1:]])
    assert network.losses(params, jnp.asarray(row)[None])[0] == pytest.approx(by_hand, rel=2e-3)


def test_noise_is_what_it_is_called_and_texts_are_read_back() -> None:
    text = "Deep ä\n\tZ~"
    assert "".join(ALPHABET[i] for i in encode(text)) == "deep ?\n?z~"
    texts = read_texts(33, 400, 0)
    counts = {
        name: np.bincount(rows.ravel(), minlength=len(ALPHABET)) / rows.size
        for name, rows in texts.sources.items()
    }
    # 13 200 letters: the standard error of a frequency p is sqrt(p / 13 200) at most
    error = 4 * np.sqrt(np.maximum(counts["docstrings"], 1e-3) / 13_200) * np.sqrt(2)
    assert np.all(np.abs(counts["shuffled"] - counts["docstrings"]) <= 3 * error)
    assert np.all(np.abs(counts["uniform"] - 1 / 70) <= 4 * np.sqrt(1 / 70 / 13_200))
    assert all(rows.shape[1] == 33 for rows in texts.sources.values())


def test_code_has_no_docstrings() -> None:
    docstrings, code = read_modules()
    found = [
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(code.replace("from __future__", "from future")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]
    assert found.count(None) == len(found) > 500
    assert "heap" in docstrings


def test_rows_of_a_training_come_from_sources_by_weight() -> None:
    judge = mixture(bl.Reverse(SGD, 2), **SMALL, train_steps=500).picture.args[0]  # type: ignore[union-attr]
    weights = np.array([0.5, 0, 0, 0.25, 0, 0.25])
    drawn = judge.draw_rows(weights)
    tables = [{row.tobytes() for row in part} for part in judge.texts.sources.values()]
    shares = [np.mean([row.tobytes() in table for row in drawn]) for table in tables]
    error = 4 * np.sqrt(0.25 / len(drawn))
    np.testing.assert_allclose(shares, weights, atol=error)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Implicit has no solver with a batch_size"):
        mixture(bl.Implicit(bl.LBFGS(), 5))
    with pytest.raises(ValueError, match=r"rows=0 must be at least 1"):
        mixture(bl.Reverse(SGD, 2), rows=0)
    with pytest.raises(ValueError, match=r"the target has \d+"):
        mixture(bl.Reverse(SGD, 2), validation=10**6)


@pytest.mark.slow
def test_planted_noise_is_at_the_bottom_and_the_mixture_beats_uniform_weights() -> None:
    found = run_experiment("mixture")
    judge = found.job.task.picture.args[0]
    assert found.metrics["misplaced"] == 0
    assert found.metrics["test_loss"] < judge.score(np.ones(6))["test_loss"] - 0.1
