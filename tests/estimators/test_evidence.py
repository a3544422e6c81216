"""Evidence against exact hypergradients: closed forms, and the dense oracle in float64."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bilevel as bl
from bilevel.core.error import student_quantile
from bilevel.estimators.budget import Budget
from bilevel.testing import dense_hypergradient

KEY = jax.random.key(0)
ONE = bl.Data(inner=jnp.zeros(1), outer=jnp.zeros(1))
CURVATURE = (1.0, 1e-3)
GD = bl.GradientDescent(1.0)
FEW = {
    "Reverse": bl.Reverse(GD, 60),
    "Reverse, checkpoints": bl.Reverse(GD, 60, memory="checkpoint"),
    "Forward": bl.Forward(GD, 60),
    "Forward, chunk": bl.Forward(GD, 60, chunk=1),
    "Replicated": bl.Replicated(bl.Forward(GD, 60), 3),
    "Predicted": bl.Predicted(bl.Reverse(GD, 60)),
}


def two_curvatures(start: Any = (0.0, 0.0)) -> tuple[bl.Problem, jax.Array, jax.Array]:
    """``w* = (1, h)`` with curvatures 1 and 1e-3; exact ``d outer / d h = -1`` at ``h = 0``.

    After K steps of size 1 from ``w_0`` the derivative of the second entry is ``1 - .999^K``.
    """

    def inner(w: jax.Array, h: jax.Array, _: Any) -> jax.Array:
        target = jnp.array([1.0, 0.0]) + jnp.array([0.0, 1.0]) * h
        return jnp.sum(jnp.array(CURVATURE) * (w - target) ** 2) / 2

    def outer(w: jax.Array, h: jax.Array, _: Any) -> jax.Array:
        return jnp.sum((w - jnp.array([0.0, 1.0])) ** 2) / 2

    return bl.Problem(inner, outer), jnp.array(0.0), jnp.array(start)


@pytest.mark.parametrize("start", [(0.0, 0.0), (1.0, 0.0)], ids=["from 0", "at the minimiser"])
@pytest.mark.parametrize("name", FEW)
def test_a_derivative_that_has_not_converged_is_seen(name, start, x64):
    problem, h, w = two_curvatures(start)
    with pytest.warns(bl.EvidenceWarning, match="wrong by about 94 %: the derivative"):
        estimate, _ = bl.hypergradient(problem, FEW[name], h, w, ONE, KEY)
    missing = 0.999**60  # of the derivative, exactly
    assert estimate.grad == pytest.approx(-(1 - missing), rel=1e-9)
    assert estimate.evidence.inner_residual < 1e-9
    assert estimate.relative_error == pytest.approx(missing, rel=1e-6)
    assert estimate.evidence.derivative_residual > 0.5


def test_a_truncated_derivative_is_seen(x64):
    problem, h, w = two_curvatures()
    with pytest.warns(bl.EvidenceWarning):
        estimate, _ = bl.hypergradient(problem, bl.Reverse(GD, 60, truncate=5), h, w, ONE, KEY)
    assert estimate.relative_error == pytest.approx(0.999**5, rel=1e-6)


@pytest.mark.parametrize("name", FEW)
def test_enough_steps_are_no_alarm(name, x64):
    """At 1e-3 curvature 20 000 steps leave e^-20 of the derivative."""
    problem, h, w = two_curvatures()
    estimator = jax.tree.map(lambda x: x, FEW[name])
    inside = getattr(estimator, "estimator", estimator)
    longer = type(inside)(GD, 20_000)
    if inside is not estimator:
        longer = bl.Replicated(longer, 3) if name == "Replicated" else bl.Predicted(longer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate, _ = bl.hypergradient(problem, longer, h, w, ONE, KEY)
    assert estimate.grad == pytest.approx(-1.0, rel=1e-6)
    assert estimate.relative_error < 1e-6


def scaled(kind: str, smallest: float, seed: int = 1) -> Any:
    """Ridge or logistic regression with ten columns of sizes 1 .. ``smallest``."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(1, smallest, 10)
    X = rng.standard_normal((200, 10)) * sizes
    z = X @ (rng.standard_normal(10) / sizes)
    y = z + rng.standard_normal(200) if kind == "ridge" else np.sign(z + rng.standard_normal(200))

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        X, y = batch
        if kind == "ridge":
            return jnp.mean((X @ w - y) ** 2) / 2
        return jnp.mean(jnp.logaddexp(0, -y * (X @ w)))

    problem = bl.Problem(
        lambda w, h, b: loss(w, b) + jnp.exp(h) * jnp.sum(w**2) / 2, lambda w, h, b: loss(w, b)
    )
    data = bl.Data(inner=(X[:100], y[:100]), outer=(X[100:], y[100:]))
    return problem, jnp.array(-14.0), jnp.zeros(10), data


@pytest.mark.parametrize("smallest", [1.0, 1e-3])
@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_auto_meets_its_tolerance(kind, smallest, x64):
    problem, h, w, data = scaled(kind, smallest)
    exact = float(dense_hypergradient(problem, h, w, data)[1])
    estimate, _ = bl.hypergradient(problem, bl.Auto(1e-3), h, w, data, KEY)
    assert abs(float(estimate.grad) - exact) < 2e-3 * abs(exact)
    assert estimate.relative_error <= 1e-3


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
@pytest.mark.parametrize("estimator", ["Reverse", "Forward"])
def test_too_few_steps_of_sgd_on_scaled_columns(estimator, kind, x64):
    """99.9 % wrong at an inner residual of a few per cent."""
    problem, h, w, data = scaled(kind, 1e-3)
    exact = float(dense_hypergradient(problem, h, w, data)[1])
    made = getattr(bl, estimator)(bl.SGD(0.1, batch_size=10), 300)
    with pytest.warns(bl.EvidenceWarning):
        estimate, _ = bl.hypergradient(problem, made, h, w, data, KEY)
    assert abs(float(estimate.grad) - exact) > 0.9 * abs(exact)
    assert estimate.relative_error > 0.5


def test_steps_that_are_the_objective_are_right_however_few():
    """A start of the problem's own: what is differentiated is three steps, not the minimiser."""
    problem = bl.Problem(
        lambda w, h, b: jnp.sum((w - 1) ** 2) / 2, lambda w, h, b: jnp.sum(w**2),
        start=lambda h, w: h * jnp.ones_like(w),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate, _ = bl.hypergradient(
            problem, bl.Reverse(bl.GradientDescent(0.1), 3), jnp.array(0.5), jnp.zeros(2), ONE, KEY
        )
    assert estimate.evidence.derivative_residual == pytest.approx(0.9**3, rel=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 5, 30])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_quantiles_are_students(level, freedom, x64):
    expected = stats.t.ppf(0.5 + level / 2, freedom)
    assert student_quantile(level, jnp.asarray(freedom)) == pytest.approx(expected, rel=1e-9)


def test_interval_of_the_normal_and_less_the_bias(x64):
    evidence = bl.Evidence(standard_error=jnp.array(1.0), bias=jnp.array(0.5))
    low, high = bl.Estimate(jnp.array(0.0), jnp.array(2.0), evidence).interval(0.9)
    assert [low, high] == pytest.approx(list(stats.norm(1.5, 1).interval(0.9)), rel=1e-9)
    with pytest.raises(ValueError, match=r"measured no standard error. Wrap it: Replicated"):
        bl.Estimate(jnp.array(0.0), jnp.array(2.0), bl.Evidence()).interval()


@pytest.mark.parametrize(
    ("grad", "evidence", "expected"),
    [
        (2.0, {}, np.nan),
        (2.0, {"inner_residual": 0.2, "linear_residual": 0.3}, 0.3),
        (2.0, {"bias": 1.0}, 1.0),
        (2.0, {"standard_error": 1.0, "residual_error": 0.5}, np.hypot(0.5, 1 / 3**0.5)),
        (2.0, {"standard_error": 5.0}, 5.0),  # hidden by noise: at most twice the plain ratio
        (2.0, {"inner_residual": 0.2}, np.nan),
        (np.nan, {"inner_residual": 0.0}, np.inf),
        (2.0, {"inner_residual": np.inf}, np.inf),
        (0.0, {"bias": 0.0}, 0.0),
        (0.0, {"standard_error": 1.0}, np.inf),
    ],
)
def test_the_one_number(grad, evidence, expected):
    made = bl.Evidence(**{name: jnp.asarray(value) for name, value in evidence.items()})
    estimate = bl.Estimate(jnp.array(0.0), jnp.asarray(grad), made)
    np.testing.assert_allclose(estimate.relative_error, expected, rtol=1e-6)


def test_unknown_names_what_is_missing():
    def unknown(**evidence: Any) -> tuple[str, ...]:
        return bl.Estimate(jnp.array(0.0), jnp.array(1.0), bl.Evidence(**evidence)).unknown

    assert unknown() == ("systematic error", "noise of the inner solver")
    assert unknown(bias=1.0, standard_error=1.0) == ()


def test_evidence_is_a_price():
    """On a million rows the auto budget is an eighth of ten steps, whatever the rows."""
    data = bl.Data(inner=jnp.zeros((10**6, 1), jnp.int8), outer=jnp.zeros(1))
    params, solver = jnp.zeros(1000), bl.SGD(0.1, batch_size=64)

    def budget(evidence: str, steps: int) -> Budget:
        problem = bl.Problem(lambda w, h, b: h, lambda w, h, b: h, evidence=evidence)
        return Budget.of(problem, solver, data, params, 4 * steps)

    assert budget("full", 10).rows == 10**6
    assert budget("off", 10)[:2] == (0, 64)
    few, many = budget("auto", 10), budget("auto", 1000)
    assert few.products == 0
    assert 3 * few.rows <= 0.15 * 4 * 10 * 64
    assert many.products > 0
    assert (6 + 2.5 * many.products) * many.rows <= 0.15 * 4 * 1000 * 64


def test_an_unknown_level_is_refused():
    problem, h, w = two_curvatures()
    with pytest.raises(ValueError, match="evidence must be one of"):
        bl.hypergradient(problem, FEW["Forward"], h, w, ONE, KEY, evidence="some")
