"""Attributions of digits against scikit-learn's fits, SciPy's ranks and real retraining."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import bilevel as bl
from tasks.attribution import attribution
from tasks.judges.attribution_judge import score_subsets
from tests.tasks.experiment import run_experiment

CONVERGED = bl.Implicit(bl.LBFGS(), steps=100, linear=bl.CG(tol=1e-8))


def judge_of(task: Any) -> Any:
    return task.picture.args[0]


def test_score_is_the_mean_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    scores, outcomes = rng.normal(size=(4, 9)), rng.normal(size=(4, 12)).round(1)
    subsets = np.stack([rng.permutation(9)[:5] for _ in range(12)])
    lds, low, high = score_subsets(scores, subsets, outcomes)
    sums = [[scores[t, chosen].sum() for chosen in subsets] for t in range(4)]
    each = [np.asarray(spearmanr(sums[t], outcomes[t]))[0] for t in range(4)]
    assert lds == pytest.approx(np.mean(each))
    assert low < lds < high
    assert score_subsets(scores, subsets, np.array(sums)) == pytest.approx((1, 1, 1))


def test_hypergradient_is_the_central_difference(x64) -> None:
    """Of the mean test loss where scikit-learn puts the fit on weighted rows."""
    decay = 0.02
    task = attribution(CONVERGED, train=60, test=20, decay=decay)
    X, y, _ = map(np.asarray, task.data.inner)
    held, labels = map(np.asarray, task.data.outer)
    X, held = (np.concatenate([x, np.ones((len(x), 1))], axis=1) for x in (X, held))

    def value(weights: np.ndarray) -> float:
        model = LogisticRegression(
            C=1 / (2 * decay * len(y)),
            fit_intercept=False,
            tol=1e-12,
            max_iter=1000,
            solver="newton-cholesky",
        )
        model.fit(X, y, sample_weight=weights)
        return log_loss(labels, model.predict_proba(held), labels=model.classes_)

    way = np.random.default_rng(0).normal(size=len(y))
    way -= way.mean()  # weights of mean 1 leave the penalty as it is
    slope = (value(1 + 1e-4 * way) - value(1 - 1e-4 * way)) / 2e-4
    at = task.hyper, task.params, task.data, jax.random.key(0)
    estimate, _ = bl.hypergradient(task.problem, CONVERGED, *at)
    assert estimate.value == pytest.approx(value(np.ones(60)), rel=1e-6)
    assert estimate.grad @ way == pytest.approx(slope, rel=1e-4)
    judge = judge_of(task)
    assert judge.attributions.grad.mean(0) @ way == pytest.approx(slope, rel=1e-4)


@pytest.mark.extended
def test_where_training_converges_they_are_influence_functions(x64) -> None:
    """By the judge's dense matrices; and a subset's outcome is scikit-learn's."""
    task = attribution(CONVERGED, train=60, test=10, decay=0.02, subsets=6)
    judge = judge_of(task)
    dense, _ = judge._compare_gradients(jax.random.key(0))
    np.testing.assert_allclose(judge.attributions.grad, dense, atol=1e-5 * np.abs(dense).max())
    chosen = judge.subsets[2]
    X, y = (part[chosen] for part in judge.parts.train)
    model = LogisticRegression(
        C=1 / (2 * 0.02 * 30), fit_intercept=False, tol=1e-12, solver="newton-cholesky"
    )
    model.fit(np.concatenate([X, np.ones((30, 1))], axis=1), y)
    V, t = judge.parts.test
    likely = model.predict_proba(np.concatenate([V, np.ones((10, 1))], axis=1))
    assert len(model.classes_) == 10
    np.testing.assert_allclose(judge.outcomes[:, 2], -np.log(likely[range(10), t]), rtol=1e-4)
    assert judge.metrics["lds"] > 0.8


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ClosedForm has none"):
        attribution(bl.ClosedForm())
    with pytest.raises(ValueError, match=r"share=1.0 of train=300 rows"):
        attribution(CONVERGED, share=1.0)


@pytest.mark.slow
def test_unrolled_steps_beat_influence_functions_where_training_stops_early() -> None:
    job = run_experiment("attribution_sgd").job
    found, baselines = job.task.metrics(job.task.hyper, job.task.params), job.task.baselines()
    influence = baselines["influence functions at the end of the run"]
    assert found["lds_low"] > influence["lds"]
    assert found["lds"] > 0.85


@pytest.mark.slow
def test_attributions_of_converged_training_predict_retraining() -> None:
    found = run_experiment("attribution").metrics
    assert found["lds_low"] > 0.9
    assert jnp.isfinite(found["lds"])
