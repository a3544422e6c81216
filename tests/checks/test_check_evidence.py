"""`bl.check` holds the estimators' own evidence against what it measured, and says where it looked.

Rates are closed forms: ``1 - step_size * curvature`` on a quadratic, ``log 3`` on Chebyshev's map.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.checks.growth import Growth, diagnose_growth
from bilevel.checks.report import Measured, judge_estimator

ONE = bl.Data(inner=jnp.ones(1), outer=jnp.ones(1))
KEY = jax.random.key(0)


def bowl(curvature: Any) -> bl.Problem:
    """An inner quadratic around h, whose minimiser is h; and a target of 3."""
    curvature = jnp.asarray(curvature)
    return bl.Problem(
        lambda w, h, b: jnp.sum(curvature * (w - h) ** 2) / 2,
        lambda w, h, b: jnp.sum((w - 3) ** 2) / 2,
    )


def growth_of(problem: bl.Problem, estimator: Any, w: Any, h: float = 1.0) -> Growth:
    with jax.enable_x64(True):
        start = jnp.asarray(w, float)
        estimate, _ = bl.hypergradient(
            problem, estimator, jnp.asarray(h), start, ONE, KEY, max_error=math.inf
        )
        growth = diagnose_growth(estimator, estimate.evidence)
    assert growth is not None
    return growth


@pytest.mark.parametrize("step_size", [0.1, 0.6, 1.3])
@pytest.mark.parametrize("truncate", [None, 7])
def test_the_rate_on_a_quadratic(step_size: float, truncate: int | None) -> None:
    estimator = bl.Reverse(bl.GradientDescent(step_size), 20, truncate=truncate)
    growth = growth_of(bowl(1.5), estimator, jnp.zeros(2))
    rate = abs(1 - 1.5 * step_size)
    assert growth.rate == pytest.approx(rate, rel=1e-6)
    assert growth.exponent == pytest.approx(math.log(rate), rel=1e-6)
    assert growth.steps == (truncate or 20)


def test_the_slowest_direction_sets_the_rate() -> None:
    growth = growth_of(bowl([1.0, 0.01]), bl.Reverse(bl.GradientDescent(1.0), 5000), jnp.zeros(2))
    assert growth.rate == pytest.approx(0.99, rel=1e-4)
    assert growth.advice == "has converged"


def test_a_chaotic_solve_explodes() -> None:
    """Steps of 2 on w^4/4 - w^2/2 are -T_3 in w = sqrt(2) cos: bounded, and exponent log 3."""
    problem = bl.Problem(
        lambda w, h, b: jnp.sum(w**4 / 4 - w**2 / 2 - h * w), lambda w, h, b: jnp.sum(w)
    )
    growth = growth_of(problem, bl.Reverse(bl.GradientDescent(2.0), 300), jnp.array(0.3), 0.0)
    assert growth.exponent == pytest.approx(math.log(3), rel=0.02)
    assert growth.explodes
    for cure in ("truncate", "late", "smaller step size", "PES"):
        assert cure in growth.advice


@pytest.mark.parametrize(
    ("residual", "steps", "words"),
    [
        (1e-4, 10, "has converged"),
        (0.9**20, 20, r"converges: about 46 more steps for 0.001"),
        (0.999**20, 20, "slow: use an implicit estimator, a larger step size"),
        (1.0, 20, "slow"),
        (1.5, 20, "slow"),
        (3.0, 20, "explodes"),
        (math.inf, 20, "explodes"),
        (math.nan, 20, "explodes"),
        (0.0, 20, "has converged"),
    ],
)
def test_advice(residual: float, steps: int, words: str) -> None:
    evidence = bl.Evidence(derivative_residual=jnp.asarray(residual))
    growth = diagnose_growth(bl.Reverse(bl.GradientDescent(0.1), steps), evidence)
    assert growth is not None
    assert growth.advice.startswith(words)
    assert growth.advice in str(growth)


def test_the_steps_it_asks_for_are_enough() -> None:
    problem, solver = bowl(1.0), bl.GradientDescent(0.1)

    def residual(steps: int) -> float:
        return growth_of(problem, bl.Reverse(solver, steps), jnp.zeros(1)).residual

    few = growth_of(problem, bl.Reverse(solver, 10), jnp.zeros(1))
    more = 10 + math.ceil(few.further_steps)
    assert residual(more) < 1e-3 < residual(more - 2)


def test_only_reverse_mode_has_adjoints_of_every_step() -> None:
    evidence = bl.Evidence(derivative_residual=jnp.array(0.5))
    solver = bl.GradientDescent(0.1)
    wrapped = bl.Replicated(bl.Reverse(solver, 4), 2)
    assert diagnose_growth(bl.Forward(solver, 4), evidence) is None
    assert diagnose_growth(bl.Reverse(solver, 4), bl.Evidence()) is None
    assert diagnose_growth(wrapped, evidence) == Growth(0.5**0.25, 0.5, 4)


@pytest.mark.parametrize(
    ("slope", "known", "words"),
    [
        (1.0, 0.9, "agrees; false alarm: its own evidence says 9.0e-01"),
        (1.0, 0.1, "agrees"),
        (0.4, 0.01, "silence: its own evidence says 1.0e-02, it did not measure the noise"),
        (0.4, 0.3, None),
        (0.4, 0.9, None),
        (99.0, 0.9, None),  # far too small a number, and an alarm all the same
        (0.4, None, "silence: its own evidence says nothing, it did not measure the systematic"),
    ],
)
def test_alarm_and_silence(slope: float, known: float | None, words: str | None) -> None:
    bias = None if known is None else jnp.array(known)
    evidence = bl.Evidence(residual_error=bias)
    estimate = bl.Estimate(jnp.array(0.0), jnp.array(slope), evidence)
    row = judge_estimator(
        "a", Measured(np.array([slope]), estimate, 0.0), np.array([1.0]), 0.0, 1e-4
    )
    if words is None:
        assert "alarm" not in row.verdict
        assert "silence" not in row.verdict
    else:
        assert words in row.verdict
        assert ("alarm" in row.verdict or "silence" in row.verdict) == (words != "agrees")


def test_a_start_at_the_minimum_is_named() -> None:
    """The inner residual is 0 there, and the derivative has hardly begun."""
    estimators = {"Reverse": bl.Reverse(bl.GradientDescent(0.01), 10)}
    report = bl.check(bowl(1.0), 1.0, jnp.ones(2), ONE, estimators)
    assert report.distance < 1e-12
    assert "the same point: inner residuals say nothing of derivatives there" in str(report)
    (row,) = report.rows
    assert row.evidence is not None
    assert float(np.asarray(row.evidence.inner_residual)) == 0
    assert "the derivative of the iterates has not converged" in row.verdict
    assert "silence" not in row.verdict
    assert row.known == pytest.approx(row.error, rel=1e-6)
    assert row.growth is not None
    assert row.growth.rate == pytest.approx(0.99, rel=1e-6)
    assert "Reverse: factor 0.99 a step" in str(report)


def test_another_minimum_is_named() -> None:
    """A double well: one solver crosses the ridge between its minima, the differences do not."""
    problem = bl.Problem(
        lambda w, h, b: jnp.sum((w**2 - 1) ** 2 / 4 + h * w), lambda w, h, b: jnp.sum((w - 2) ** 2)
    )
    # From 1.5 a first step of 1 goes to -0.4; small ones then slide into the well at -1.
    crossing = bl.GradientDescent(lambda k, h: jnp.where(k == 0, 1.0, 0.1))
    linear = bl.CG(tol=1e-12)
    estimators = {
        "same": bl.Implicit(bl.GradientDescent(0.1), 500, linear),
        "other": bl.Implicit(crossing, 500, linear),
    }
    report = bl.check(problem, 0.01, jnp.array(1.5), ONE, estimators)
    same, other = report.rows
    assert same.verdict == "agrees"
    assert other.verdict.startswith("another minimum: its params end 2 of the norm away")
    assert report.minimum.norm == pytest.approx(1, abs=0.02)


def test_growth_has_a_cure_of_its_own_in_the_warning() -> None:
    """More inner steps, the cure of a derivative that has not converged, would make it worse."""
    estimator = bl.Reverse(bl.GradientDescent(2.2), 30)
    with pytest.warns(bl.EvidenceWarning, match=r"derivatives grow along.*truncate.*PES"):
        bl.hypergradient(bowl(1.0), estimator, 1.0, jnp.zeros(1), ONE, KEY)
