"""What an inner equation is refused with, and what is said of a map that does not contract."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.estimators.test_equations import ESTIMATORS, GMRES, KEY, ONE, linear_map

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda T: bl.Problem(lambda w, h, b: 0.0, lambda w, h, b: 0.0, fixed_point=T),
            "and inner",
        ),
        (lambda T: bl.Problem(outer=T, fixed_point=T, optimality=T), "Give one of"),
        (lambda T: bl.Problem(outer=T, fixed_point=T, quadratic=True), "takes no quadratic"),
        (lambda T: bl.Problem(outer=T, optimality=T, stochastic=True), "takes no stochastic"),
    ],
)
def test_what_contradicts_an_equation_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(lambda w, h, b: w)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (bl.Implicit(bl.Picard(), 5), "GMRES"),
        (bl.Implicit(bl.LBFGS(), 5, linear=GMRES), "has none"),
        (bl.Reverse(bl.Anderson(), 5), "no smooth function"),
        (bl.Implicit(bl.Picard(), 5, linear=GMRES, bias=True), "bias"),
        (bl.Auto(), "does not handle"),
        (bl.Penalty(bl.Picard(), 5), "does not handle"),
        (bl.Predicted(bl.Forward(bl.GradientDescent(0.1), 5)), "needs an inner loss"),
        (bl.single_loop.preset("soba", 0.1, batch_size=1)[0], "does not handle"),
    ],
)
def test_what_needs_a_loss_says_so(estimator: Any, message: str) -> None:
    problem, h, w, _, _ = linear_map()
    with pytest.raises(ValueError, match=message):
        bl.hypergradient(problem, estimator, h, w, ONE, KEY)


def test_a_picard_step_needs_an_equation() -> None:
    problem = bl.Problem(lambda w, h, b: h * w**2, lambda w, h, b: w)
    with pytest.raises(ValueError, match="take GradientDescent"):
        bl.hypergradient(problem, bl.Reverse(bl.Picard(), 2), 1.0, 1.0, ONE, KEY)


def test_a_map_of_another_shape_is_named() -> None:
    problem = bl.Problem(outer=lambda w, h, b: jnp.sum(w), fixed_point=lambda w, h, b: h * w[:2])
    with pytest.raises(ValueError, match=r"what problem.fixed_point returns"):
        bl.hypergradient(problem, ESTIMATORS["Picard, implicit"], 1.0, jnp.ones(3), ONE, KEY)


def test_a_map_that_does_not_contract_is_said() -> None:
    problem, h, w, _, _ = linear_map(radius=1.5)
    with pytest.warns(bl.EvidenceWarning):
        estimate, _ = bl.hypergradient(
            problem, bl.Implicit(bl.Picard(), 200, linear=GMRES), h, w, ONE, KEY
        )
    assert estimate.relative_error > 0.5
    solved, _ = bl.hypergradient(problem, ESTIMATORS["Newton, BiCGSTAB"], h, w, ONE, KEY)
    np.testing.assert_allclose(solved.grad, linear_map(radius=1.5)[-1], rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 4, 12])
@pytest.mark.parametrize("make", [bl.SGD, bl.SAGA], ids=["SGD", "SAGA"])
def test_unknowns_of_rows_are_not_solved_by_some_of_the_rows(make: Any, batch: int) -> None:
    """``w_i = w_i / 2 + h b_i``, hence ``w = 2 h b``; all rows at once are as they were."""
    rows = np.arange(1.0, 13)
    problem = bl.Problem(
        outer=lambda w, h, b: jnp.sum(w**2) / 2, fixed_point=lambda w, h, b: w / 2 + h * b
    )
    data, at = bl.Data(inner=rows, outer=np.zeros(1)), (jnp.asarray(1.0), jnp.zeros(12))
    for estimator in (
        bl.Reverse(make(0.5, batch_size=batch), 20),
        bl.Implicit(make(0.5, batch_size=batch), 20, linear=GMRES),
    ):
        with pytest.raises(ValueError, match=r"its unknowns belong to all rows\. Take Picard"):
            bl.hypergradient(problem, estimator, *at, data, KEY)
    solved, _ = bl.hypergradient(problem, bl.Reverse(bl.SGD(1.0), 60), *at, data, KEY)
    np.testing.assert_allclose(solved.grad, 4 * np.sum(rows**2), rtol=1e-9)


def test_an_equation_of_means_over_rows_takes_minibatches() -> None:
    """``w = mean_i (w / 2 + h b_i)``, hence ``w = 2 h mean(b)``, of equal rows."""
    problem = bl.Problem(
        outer=lambda w, h, b: w**2 / 2, fixed_point=lambda w, h, b: w / 2 + h * jnp.mean(b)
    )
    data, at = bl.Data(inner=np.full(12, 3.0), outer=np.zeros(1)), (jnp.asarray(1.0), 0.0)
    estimator = bl.Implicit(bl.SGD(1.0, batch_size=4), 60, linear=GMRES)
    found, _ = bl.hypergradient(problem, estimator, *at, data, KEY)
    np.testing.assert_allclose(found.grad, 36.0, rtol=1e-9)
