"""ClosedForm: the textbook formula, and a refusal wherever there is none."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import dense_hypergradient, logistic, ridge


def estimate(problem: bl.Problem, hyper: Any, params: Any, data: bl.Data) -> bl.Estimate:
    return bl.hypergradient(problem, bl.ClosedForm(), hyper, params, data, jax.random.key(0))[0]


def least_squares(ridge: float = 0.0, *, quadratic: bool = True) -> bl.Problem:
    """Weighted by ``exp(h)``, with parameters and hyperparameters as trees."""

    def outer(w: Any, h: Any, batch: Any) -> Any:
        return jnp.mean((batch[0] @ w["w"] + w["b"] - batch[1]) ** 2) / 2

    def inner(w: Any, h: Any, batch: Any) -> Any:
        X, y, rows = batch
        error = (X @ w["w"] + w["b"] - y) ** 2
        return jnp.mean(jnp.exp(h["weights"][rows]) * error) / 2 + ridge * jnp.sum(w["w"] ** 2)

    return bl.Problem(inner, outer, quadratic=quadratic)


def draw(seed: int, rows: int, features: int, rank: int) -> tuple[Any, Any, bl.Data]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, features))
    y, Xv = rng.standard_normal(rows), rng.standard_normal((7, features))
    data = bl.Data(inner=(X, y, np.arange(rows)), outer=(Xv, Xv[:, 0]))
    params = {"w": rng.standard_normal(features), "b": np.array(0.3)}
    return {"weights": rng.uniform(-1, 1, rows)}, params, data


@pytest.mark.parametrize("seed", range(3))
def test_is_the_textbook_formula(seed: int, x64: None) -> None:
    case = ridge(seed=seed)
    value, grad = case.exact(case.hyper)
    found = estimate(case.problem, case.hyper, case.params, case.data)
    np.testing.assert_allclose(found.value, value, rtol=1e-12)
    np.testing.assert_allclose(found.grad, grad, rtol=1e-10, atol=1e-13)
    assert found.evidence.inner_residual < 1e-13
    assert found.evidence.linear_residual < 1e-13
    assert found.evidence.counts.hvps == 4


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_trees_and_one_hyperparameter_per_example(dtype: str, tolerance: float) -> None:
    hyper, params, data = draw(1, rows=23, features=4, rank=4)  # condition number 22
    _, exact = dense_hypergradient(least_squares(), hyper, params, data)
    with jax.enable_x64(dtype == "float64"):
        found = estimate(least_squares(), hyper, params, data)
        assert found.grad["weights"].dtype == dtype
        scale = np.linalg.norm(exact["weights"])
        np.testing.assert_allclose(
            found.grad["weights"] / scale, exact["weights"] / scale, atol=tolerance
        )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("x64", [True, False])
def test_a_singular_hessian_is_never_a_silent_answer(seed: int, x64: bool) -> None:
    hyper, params, data = draw(seed, rows=40, features=12, rank=9)
    with jax.enable_x64(x64):
        found = estimate(least_squares(), hyper, params, data)
        assert np.isinf(found.evidence.linear_residual)
        assert np.isnan(found.value)
        assert np.isnan(found.grad["weights"]).all()
        mended = estimate(least_squares(ridge=0.01), hyper, params, data)
        assert mended.evidence.linear_residual < 1e-3
        assert np.isfinite(mended.value)


def test_a_saddle_is_never_a_silent_answer(x64: None) -> None:
    problem = bl.Problem(
        lambda w, h, x: (w[0] ** 2 - h * w[1] ** 2) / 2 + jnp.mean(x) * w[0],
        lambda w, h, x: jnp.sum(w**2),
        quadratic=True,
    )
    data = bl.Data(inner=np.ones(3), outer=np.ones(2))
    found = estimate(problem, np.array(1.0), np.zeros(2), data)
    assert np.isinf(found.evidence.linear_residual)
    assert np.isnan(found.grad)


def test_a_loss_that_is_not_quadratic_shows_in_the_residual(x64: None) -> None:
    case = logistic(seed=0)
    claimed = dataclasses.replace(case.problem, quadratic=True)
    found = estimate(claimed, case.hyper, case.params, case.data)
    assert found.evidence.inner_residual > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quadratic": False}, "quadratic=True"),
        ({"prox": lambda w, h, step: w}, "proximal solver"),
    ],
)
def test_refuses_what_has_no_closed_form(change: dict[str, Any], message: str) -> None:
    case = ridge(seed=0)
    problem = dataclasses.replace(case.problem, **change)
    with pytest.raises(ValueError, match=message):
        estimate(problem, case.hyper, case.params, case.data)


def test_folds_by_vmap_and_descent_by_tune(x64: None) -> None:
    case = ridge(seed=1)
    hypers = np.stack([case.hyper, case.hyper - 1, case.hyper + 1])
    mapped = jax.vmap(lambda h: estimate(case.problem, h, case.params, case.data).grad)(hypers)
    for hyper, grad in zip(hypers, mapped, strict=True):
        np.testing.assert_allclose(grad, case.exact(hyper)[1], rtol=1e-9, atol=1e-12)
    start, params, key = jnp.asarray(case.hyper), jnp.asarray(case.params), jax.random.key(0)
    result = bl.tune(
        case.problem, bl.ClosedForm(), optax.sgd(0.5), start, params, case.data, steps=5, key=key
    )
    hyper = np.asarray(case.hyper)
    for _ in range(5):
        hyper = hyper - 0.5 * case.exact(hyper)[1]
    np.testing.assert_allclose(result.hyper, hyper, rtol=1e-10)


@pytest.mark.extended
def test_tune_says_that_there_is_no_minimiser(x64: None) -> None:
    hyper, params, data = draw(0, rows=40, features=12, rank=9)
    with pytest.warns(bl.DivergenceWarning, match="no minimiser is defined"):
        bl.tune(
            least_squares(),
            bl.ClosedForm(),
            optax.sgd(0.1),
            hyper,
            params,
            data,
            steps=3,
            key=jax.random.key(0),
        )
