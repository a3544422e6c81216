"""The study of losses whose Hessian varies: its problems, and what it fits to runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import base
from experiments.studies.theory import sgd_curved
from experiments.studies.theory.curved_losses import (
    COLUMNS,
    EDGE,
    LOGISTIC,
    QUARTIC,
    make_cases,
    quartic,
)
from experiments.studies.theory.curved_runs import Outcome, fit_log_share, measure_growth

pytestmark = pytest.mark.usefixtures("x64")
STEPS = dict.fromkeys(COLUMNS, 50)


def test_quartic_has_the_curvature_that_it_says() -> None:
    """``phi'' = 1 + min(t, T)^2``; value and slope by quadrature of it."""
    t = np.linspace(-4, 4, 801)
    second = jax.vmap(jax.grad(jax.grad(quartic)))(t)
    np.testing.assert_allclose(second, 1 + np.minimum(abs(t), EDGE) ** 2, rtol=1e-12)
    slope = jax.vmap(jax.grad(quartic))(t)
    trapezoid = np.cumsum((second[1:] + second[:-1]) / 2) * (t[1] - t[0])
    np.testing.assert_allclose(slope[1:] - slope[0], trapezoid, atol=1e-3)
    assert float(quartic(jnp.asarray(1.0))) == pytest.approx(0.5 + 1 / 12)


@pytest.mark.parametrize("loss", [LOGISTIC, QUARTIC], ids=lambda loss: loss.name)
def test_constants_of_a_loss_are_reached_and_not_exceeded(loss) -> None:
    t = np.linspace(-6, 6, 4001)
    second = np.asarray(jax.vmap(jax.grad(jax.grad(loss.phi)))(t))
    third = np.abs(np.diff(second) / np.diff(t))
    assert loss.curvature * 0.999 < second.max() <= loss.curvature * (1 + 1e-9)
    assert loss.lipschitz * 0.99 < third.max() <= loss.lipschitz * (1 + 1e-9)


@pytest.mark.parametrize("loss", [LOGISTIC, QUARTIC], ids=lambda loss: loss.name)
def test_which_noises_a_column_has(loss) -> None:
    """Noise of one example at ``(x*, D* = I)``: of x without interpolation, of D in one column.

    Differences of the example's own gradient along ``x = theta + const`` stand in for autodiff.
    """
    zero, ends = np.zeros(3), 1e-5 * np.eye(3)
    for case in make_cases(loss, 20, 3, STEPS, seed=1):
        gradient = jax.jit(jax.grad(case.problem.inner))
        all_rows, x = case.data.inner, zero
        for _ in range(30):  # Newton's method with a Hessian by differences
            sides = [
                gradient(x + e, zero, all_rows) - gradient(x - e, zero, all_rows) for e in ends
            ]
            x = x - np.linalg.solve(np.stack(sides, 1) / 2e-5, gradient(x, zero, all_rows))
        rows = [tuple(part[i : i + 1] for part in all_rows) for i in range(20)]
        of_x = max(np.abs(gradient(x, zero, row)).max() for row in rows)
        of_D = max(
            np.abs(gradient(x + e, e, row) - gradient(x - e, -e, row)).max() / 2e-5
            for row in rows
            for e in ends
        )
        assert (of_x < 1e-10) == ("interpolation" in case.name)
        assert (of_D < 1e-5) == (case.name != COLUMNS[3])


def make_outcome(expected: np.ndarray, spread: float, runs: int = 400) -> Outcome:
    case = make_cases(LOGISTIC, 5, 2, STEPS, 0)[1]
    rng = np.random.default_rng(0)
    found = expected[9::10] * (1 + spread * rng.standard_normal((runs, 1, 1)))
    return Outcome(case, expected, expected, found, 10, np.nan, 98.0)


@pytest.mark.parametrize(("power", "share"), [(0, 0.0), (2, 1.0)])
def test_the_share_of_the_logarithm_is_found(power: int, share: float) -> None:
    t = np.arange(1, 20_001) + 98.0
    error = np.log(t) ** power / t
    found, _, expected = fit_log_share(make_outcome(np.stack([error, error], 1), 0.3))
    assert found == pytest.approx(share, abs=1e-9)
    assert expected == pytest.approx(share, abs=1e-9)


def test_growth_in_proportion_to_k_is_found() -> None:
    k = np.arange(1, 3001)
    x = 0.98**k
    row = measure_growth(make_outcome(np.stack([x, x * (0.01 * k) ** 2], 1), 0.3))
    assert row["growth"] == pytest.approx(row["to k"] / row["from k"], rel=1e-9)
    assert row["increments"] == pytest.approx(1, abs=0.05)  # quarters are rounded to records
    with pytest.raises(ValueError, match=r"300 steps do not reduce.*Take more"):
        measure_growth(make_outcome(np.stack([x, x], 1)[:300], 0.3))


@pytest.mark.slow
def test_a_tiny_study_passes_its_checks() -> None:
    sizes = sgd_curved.Sizes(steps=40_000, runs=600, constant_runs=60)
    result = sgd_curved.run(sizes, 0, base.quiet)
    assert result.passed, [str(check) for check in result.checks]
