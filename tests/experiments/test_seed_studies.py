"""The studies of open questions: what theory predicts of their parts, and tiny runs of each."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import ElasticNet
from sklearn.svm import LinearSVC

import bilevel as bl
from bilevel.noise.hypergradients import influence
from experiments.studies import base
from experiments.studies.open_questions import batch_and_schedule as batch
from experiments.studies.open_questions import hinges, many, measure, network, problems, theory
from experiments.studies.open_questions import variance_reduction as reduction
from experiments.studies.open_questions.kinks import make_sparse_case, solve_hinge, solve_sparse

pytestmark = [pytest.mark.extended, pytest.mark.usefixtures("x64")]


@functools.cache
def ridge() -> problems.Setting:
    """One for all tests: its dense oracle takes seconds."""
    return problems.make_ridge(0)


def test_cross_sampling_removes_the_bias_that_one_run_has() -> None:
    sizes, at = reduction.Sizes(steps=200, many=2_500), ridge()
    same, cross = (reduction._measure_bias(at, n, sizes, 3) for n in ("same run", "cross-sampling"))
    assert same.resolved > 4
    assert cross.resolved < 4  # false alarm: 6e-5
    exact, _ = theory.predict_moments(at, reduction.STEP / at.largest, 1, sizes.steps)
    assert abs(same.bias[0] - exact) < 4 * same.bias_error[0]  # false alarm: 6e-5


def test_variance_falls_with_the_batch_as_the_moments_say() -> None:
    at = ridge()
    rows = batch._vary_batch(at, batch.Sizes(batches=(1, 8), steps=150, many=1_500), 0, base.quiet)
    for row in rows:
        assert abs(row["bias"] - row["exact bias"]) < 4 * row["bias s.e."]  # false alarm: 6e-5
        # The delta method leaves out fourth-order noise: a few per cent, more at B = 1.
        assert abs(row["sd"] / row["predicted sd"] - 1) < 0.1 + 4 * row["sd s.e."] / row["sd"]
    one, eight = (row["sd"] ** 2 for row in rows)
    assert 6 < one / eight < 12  # 8 in the limit of small steps, where nothing multiplies


def test_averages_reduce_the_error_and_saga_has_no_floor() -> None:
    at = ridge()
    last, tail, saga = (
        measure.assess(
            measure.sample(
                at, reduction.make_estimator(name, step / at.largest, 1_500), 60, 0
            ).grads,
            at.exact,
        )
        for name, step in (("same run", 0.4), ("tail average", 0.4), ("SAGA", 0.3))
    )
    value, error = measure.compare_errors(tail, last)
    assert value + 4 * error < 1  # false alarm: 3e-5
    assert saga.mse < 1e-8 * last.mse


def test_influences_add_up_to_those_of_the_library() -> None:
    at = problems.make_logistic(0)
    iterate, derivative = theory.find_influences(at)
    x = jnp.asarray(bl.testing.dense_solution(at.problem, at.hyper, at.params, at.data))
    library = jax.jit(
        lambda x, h: influence.compute_influence(
            at.problem, h, x, at.data, linear=bl.CG(tol=1e-12)
        ).values[0]
    )(x, jnp.asarray(at.hyper))
    np.testing.assert_allclose(-(iterate + derivative), library, rtol=1e-8, atol=1e-10)


def test_costs_follow_the_counts() -> None:
    sgd, n = bl.SGD(0.1, batch_size=4), 64
    forward = bl.Counts(gradients=101.0, jvps=300.0)  # 100 steps, 3 tangents, one residual
    assert measure.price(bl.Forward(sgd, 100), forward, n) == 4 * (100 + 300)
    linear = bl.SGDLinear(0.1, steps=50, batch_size=2)
    implicit = bl.Counts(gradients=101.0, hvps=51.0)
    assert measure.price(bl.Implicit(sgd, 100, linear=linear), implicit, n) == 400 + 100 + n
    svrg = bl.Forward(bl.SVRG(0.1, batch_size=2), 100)
    assert measure.price(svrg, bl.Counts(101.0, 0.0, 100.0), n) == 200 * (2 * 2 + 64 / 64)
    twice = bl.Counts(gradients=202.0, jvps=600.0)
    assert measure.price(bl.Richardson(bl.Forward(sgd, 100)), twice, n) == 2 * 4 * (100 + 300)


def _regression(seed: int) -> tuple[tuple, tuple]:
    X, w, rng = problems.make_design(seed, 80, 6, spread=0.1)
    y = X @ (w * (np.arange(6) % 2)) + rng.standard_normal(80)
    return (X[:40], y[:40]), (X[40:], y[40:])


@pytest.mark.parametrize("lam2", [0.0, 0.05])
def test_sparse_reference_against_scikit_learn_and_differences(lam2: float) -> None:
    inner, outer = _regression(0)
    found = solve_sparse(inner, outer, np.log(0.1), lam2)
    peer = ElasticNet(
        alpha=0.1 + lam2,
        l1_ratio=0.1 / (0.1 + lam2),
        fit_intercept=False,
        tol=1e-12,
        max_iter=10**5,
    ).fit(*inner)
    np.testing.assert_allclose(found.solution, peer.coef_, atol=1e-6)
    assert 0 < found.active < 6

    def value(log_lam1: float) -> float:
        w = solve_sparse(inner, outer, log_lam1, lam2).solution
        return float(((outer[0] @ w - outer[1]) ** 2).mean() / 2)

    h = np.log(0.1)
    assert found.grad[0] == pytest.approx((value(h + 1e-4) - value(h - 1e-4)) / 2e-4, rel=1e-6)


def test_hinge_reference_against_scikit_learn_and_differences() -> None:
    X, w, rng = problems.make_design(0, 80, 5, spread=0.1)
    y = np.sign(X @ w + 0.5 * rng.standard_normal(80))
    inner, outer = (X[:40], y[:40]), (X[40:], y[40:])
    found = solve_hinge(inner, outer, np.log(0.1))
    peer = LinearSVC(loss="hinge", C=1 / (0.1 * 40), fit_intercept=False, tol=1e-10, max_iter=10**6)
    np.testing.assert_allclose(found.solution, peer.fit(*inner).coef_[0], atol=1e-5)
    assert found.active > 0  # without an example on the margin both derivatives agree

    def value(log_lam: float) -> float:
        w = solve_hinge(inner, outer, log_lam).solution
        return float(np.log1p(np.exp(-outer[1] * (outer[0] @ w))).mean())

    h = np.log(0.1)
    assert found.grad[0] == pytest.approx((value(h + 1e-5) - value(h - 1e-5)) / 2e-5, rel=1e-5)


def test_subgradient_steps_miss_the_kink_and_proximal_ones_do_not() -> None:
    at, exact, mu = make_sparse_case("elastic net", 0)
    step = 0.2
    wrong, right = (
        measure.assess(
            hinges.sample_averages((at, exact, mu), w, step, 30, 0)[:, :1], exact.grad[:1]
        )
        for w in ("subgradient", "proximal")
    )
    limit = (exact.missed - exact.grad)[0] / abs(exact.grad[0])
    assert abs(wrong.bias[0] - limit) < 0.3 * abs(limit)
    assert abs(right.bias[0]) + 4 * right.bias_error[0] < 0.5 * abs(wrong.bias[0])


def test_forward_on_a_network_is_the_gradient_of_the_mean_outer_loss() -> None:
    assert network.measure_gap(bl.testing.mlp(0), 200, 0.001, 3, 0) < 1e-5


@pytest.mark.parametrize("kind", ["feature", "example"])
def test_many_closed_forms_against_differences(kind: str) -> None:
    at = many.make_case(kind, 12, 0)
    inner, outer = at.data.inner, at.data.outer
    X, y, n = inner["X"], inner["y"], len(inner["y"])

    def value(hyper: np.ndarray) -> float:
        weights = np.exp(hyper) if kind == "example" else np.ones(n)
        penalty = np.exp(hyper) if kind == "feature" else np.full(X.shape[1], many.PENALTY)
        w = np.linalg.solve(
            X.T @ (X * weights[:, None]) / n + np.diag(penalty), X.T @ (weights * y) / n
        )
        return float(((outer["X"] @ w - outer["y"]) ** 2).mean() / 2)

    steps = 1e-5 * np.eye(12)
    differences = [(value(at.hyper + e) - value(at.hyper - e)) / 2e-5 for e in steps]
    np.testing.assert_allclose(at.exact, differences, rtol=1e-5, atol=1e-9)


TINY = {
    "iterative_vs_implicit": {"calls": (1_000, 4_000), "runs": 100, "many": 2, "data_sets": 1},
    "batch_and_schedule": {
        "batches": (1, 8),
        "budget": 1_000,
        "budgets": (1_000,),
        "runs": 50,
        "many": 1_500,
    },
    "variance_reduction": {"steps": 400, "many": 3_000, "budgets": (3_000,), "runs": 60},
    "nonsmooth": {"steps": (0.8, 0.2), "runs": 40, "passes": (20, 80), "widths": (1.0, 0.1)},
    "network": {"decays": (0.1, 0.001), "steps": (500, 2_000), "runs": 10},
    "many": {"counts": (30, 300), "forward_up_to": 300, "seeds": 4},
    "hinges": {"steps": (0.2,), "penalties": (0.3, 0.1), "widths": (1.0,), "runs": 40},
    "many_real": {"degree": 2, "seeds": 4, "data_sets": ("wine", "digits")},
    "real_data": {"calls": 4_000, "runs": 100, "many": 500, "data_sets": 1},
    "degenerate_support": {
        "slacks": (0.0, 0.15),
        "rates": (0.05,),
        "steps": (0.8, 0.2),
        "runs": 60,
        "data_sets": ("diabetes", "wine"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run_passes_its_checks(name: str) -> None:
    study = importlib.import_module(f"experiments.studies.open_questions.{name}")
    result = study.run(study.Sizes(**TINY[name]), 0, base.quiet)
    assert result.passed, [str(check) for check in result.checks]
    assert result.findings
    assert len(base.markdown_page(result)) > 500
