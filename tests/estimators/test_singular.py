"""Null spaces of the inner Hessian: free where the outer loss does not touch them, else said."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.linear.singular import factorise

KEY = jax.random.key(0)
GD = bl.GradientDescent(0.3)
LINEAR: dict[str, Any] = {
    "CG": bl.CG(),
    "MINRES": bl.MINRES(),
    "GMRES": bl.GMRES(),
    "BiCGSTAB": bl.BiCGSTAB(),
    "Dense": bl.Dense(),
    "Neumann": bl.Neumann(terms=100, step_size=0.3),
    "FixedPoint": bl.linear.FixedPoint(step_size=0.3),
}
ALL: dict[str, Any] = {
    **{name: bl.Implicit(GD, 100, linear) for name, linear in LINEAR.items()},
    "Newton": bl.Implicit(bl.Newton(), 5),
    "Direct": bl.Implicit(bl.Direct(), 1),
    "Direct, Dense": bl.Implicit(bl.Direct(), 1, bl.Dense()),
    "Reverse": bl.Reverse(GD, 100),
    "Reverse, Direct": bl.Reverse(bl.Direct(), 1),
    "OneStep": bl.OneStep(bl.Newton(), 4),
    "Forward": bl.Forward(GD, 100),
    "ClosedForm": bl.ClosedForm(),
    "Auto": bl.Auto(),
}


def unused_params(touched: bool = False) -> tuple[bl.Problem, Any, Any, bl.Data]:
    """``w* = mean x / (1 + h)``; a parameter that the inner loss does not have."""

    def outer(p: Any, h: Any, x: Any) -> Any:
        return (p["w"] - 1) ** 2 / 2 + touched * jnp.sum(p["unused"])

    def inner(p: Any, h: Any, x: Any) -> Any:
        return jnp.mean((p["w"] - x) ** 2) / 2 + h * p["w"] ** 2 / 2

    start = {"w": jnp.array(0.0), "unused": jnp.array([1.0, 5.0])}
    data = bl.Data(inner=jnp.array([2.0, 4.0]), outer=jnp.zeros(1))
    return bl.Problem(inner, outer, quadratic=True), jnp.array(1.0), start, data


def equal_columns() -> tuple[bl.Problem, Any, Any, bl.Data, float]:
    """Weighted least squares without a penalty, twice the same column; and d outer / d h.

    With one column ``w*(h) = sum(e^(h t) x y) / sum(e^(h t) x^2)``, t in 0 .. 1, which is the sum
    of the two weights.
    """
    rng = np.random.default_rng(0)
    x, y, t = rng.standard_normal(20), rng.standard_normal(20), np.linspace(0, 1, 20)

    def inner(w: Any, h: Any, rows: Any) -> Any:
        x, y, t = rows
        return jnp.mean(jnp.exp(h * t) * (x @ w - y) ** 2) / 2

    problem = bl.Problem(inner, lambda w, h, rows: jnp.sum(w) ** 2 / 2, quadratic=True)
    data = bl.Data(inner=(np.stack([x, x], 1), y, t), outer=np.zeros(1))
    at = (x * y).sum() / (x**2).sum()
    slope = (t * x * (y - x * at)).sum() / (x**2).sum()
    return problem, jnp.array(0.0), jnp.zeros(2), data, at * slope


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_parameter_that_the_inner_loss_does_not_use_costs_nothing(name: str, x64: bool) -> None:
    with jax.enable_x64(x64):
        problem, h, w, data = unused_params()
        estimate, state = bl.hypergradient(problem, ALL[name], h, w, data, KEY)
        assert estimate.grad == pytest.approx(0.5 * -0.75, rel=1e-5)  # (w* - 1)(-w* / (1 + h))
        np.testing.assert_array_equal(state.params["unused"], w["unused"])
        left = estimate.evidence.linear_residual
        assert left is None or left < 1e-5


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("name", ["ClosedForm", "Auto", "Direct", "Dense", "CG", "Reverse"])
def test_equal_columns_without_a_penalty(name: str, x64: bool) -> None:
    with jax.enable_x64(x64):
        problem, h, w, data, exact = equal_columns()
        estimate, state = bl.hypergradient(problem, ALL[name], h, w, data, KEY)
        assert estimate.grad == pytest.approx(exact, rel=1e-3 if not x64 else 1e-6)
        assert state.params[0] == pytest.approx(float(state.params[1]), rel=1e-5)


@pytest.mark.filterwarnings("ignore::bilevel.EvidenceWarning")
@pytest.mark.parametrize("name", ["ClosedForm", "Auto", "Dense"])
def test_a_null_space_that_the_outer_loss_touches_is_never_a_silent_answer(
    name: str, x64: None
) -> None:
    problem, h, w, data = unused_params(touched=True)
    estimate, _ = bl.hypergradient(problem, ALL[name], h, w, data, KEY)
    assert np.isnan(estimate.grad)
    assert np.isinf(estimate.evidence.linear_residual)
    with pytest.warns(bl.EvidenceWarning, match="singular in a direction that the outer loss"):
        bl.hypergradient(problem, ALL[name], h, w, data, KEY)


@pytest.mark.filterwarnings("ignore::bilevel.EvidenceWarning")
def test_an_inner_loss_without_a_minimum_is_never_a_silent_answer(x64: None) -> None:
    problem = bl.Problem(
        lambda w, h, x: h * w[0] ** 2 / 2 + w[1] + jnp.mean(x) * w[0],
        lambda w, h, x: w[0],
        quadratic=True,
    )
    data = bl.Data(inner=jnp.ones(2), outer=jnp.zeros(1))
    estimate, _ = bl.hypergradient(
        problem, bl.ClosedForm(), jnp.array(1.0), jnp.zeros(2), data, KEY
    )
    assert np.isnan(estimate.value)
    assert np.isnan(estimate.grad)


def test_factors_of_a_regular_matrix_keep_their_bits_and_others_are_pseudo_inverses(
    x64: None,
) -> None:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((6, 6))
    regular, b = jnp.asarray(root @ root.T), jnp.asarray(rng.standard_normal(6))
    plain = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(regular), True), b)
    np.testing.assert_array_equal(factorise(regular).solve(b), plain)

    thin = root[:, :3] / np.linalg.norm(root[:, :3], axis=1, keepdims=True)  # a diagonal of 1
    low = jnp.asarray(thin @ thin.T)
    inside = low @ b
    np.testing.assert_allclose(factorise(low).solve(inside), np.linalg.pinv(low) @ inside)
    assert np.isnan(factorise(jnp.diag(jnp.array([1.0, -1.0]))).lower).any()
    lanes = jnp.stack([regular, low])
    solved = jax.vmap(lambda m, b: factorise(m).solve(b))(lanes, jnp.stack([b, inside]))
    np.testing.assert_allclose(solved[0], plain, rtol=1e-12)
    np.testing.assert_allclose(solved[1], np.linalg.pinv(low) @ inside, rtol=1e-8)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("name", ["ClosedForm", "Auto", "Direct, Dense"])
def test_units_of_columns_do_not_decide_what_is_singular(name: str, equal: bool) -> None:
    """Float32, columns of 1e-3 to 1e4, against least squares in NumPy's float64."""
    rng = np.random.default_rng(2)
    units = np.logspace(-3, 4, 6)
    X, y = rng.standard_normal((60, 6)), rng.standard_normal(60)
    X = np.float32(np.concatenate([X * units, X[:, :1] * units[0]], 1) if equal else X * units)
    y, t = np.float32(y), np.linspace(0, 1, 60, dtype=np.float32)

    def inner(w: Any, h: Any, rows: Any) -> Any:
        x, y, t = rows
        return jnp.mean(jnp.exp(h * t) * (x @ w - y) ** 2) / 2

    problem = bl.Problem(inner, lambda w, h, rows: inner(w, 0.0, rows), quadratic=True)
    split = slice(40), slice(40, None)
    data = bl.Data(*((X[part], y[part], t[part]) for part in split))
    estimate, _ = bl.hypergradient(
        problem, ALL[name], jnp.asarray(0.3), jnp.zeros(X.shape[1]), data, KEY
    )

    def value(h: float) -> float:
        (A, b, s), (B, c, _) = (
            (np.float64(X[part][:, :6]) / units, np.float64(y[part]), t[part]) for part in split
        )
        root = np.exp(h * np.float64(s) / 2)
        w = np.linalg.lstsq(root[:, None] * A, root * b, rcond=None)[0]
        return float(np.mean((B @ w - c) ** 2) / 2)

    exact = (value(0.3 + 1e-4) - value(0.3 - 1e-4)) / 2e-4
    assert estimate.grad == pytest.approx(exact, rel=2e-4)
    assert estimate.relative_error < 1e-4
