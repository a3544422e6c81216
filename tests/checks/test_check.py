"""`bl.check` agrees with closed forms, tells right from wrong, and says why."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel.testing import Case, mlp, ridge

RIDGE = ridge(seed=0)
GD = bl.GradientDescent(RIDGE.step_size)


def check(estimators: Any = None, case: Case = RIDGE, **more: Any) -> bl.CheckReport:
    return bl.check(case.problem, case.hyper, case.params, case.data, estimators, **more)


@pytest.mark.extended
def test_the_reference_is_the_closed_form() -> None:
    report = check()
    assert RIDGE.exact is not None
    value, grad = RIDGE.exact(RIDGE.hyper)
    assert report.value == pytest.approx(value, rel=1e-12)
    np.testing.assert_array_equal(report.directions, np.eye(4))
    np.testing.assert_allclose(report.reference, grad, rtol=1e-9)
    assert report.uncertainty < 1e-6
    # The defaults are run to convergence, with a step size of their own.
    assert [row.name for row in report.rows] == ["Implicit", "Reverse", "Forward"]
    assert report.agrees
    for row in report.rows:
        np.testing.assert_allclose(row.slopes, grad, rtol=1e-8)
        assert row.verdict == "agrees"
    assert jnp.zeros(()).dtype == jnp.float32  # the caller's precision is left alone


@pytest.mark.extended
def test_a_network_and_trees() -> None:
    case = mlp(seed=0)
    solver = bl.GradientDescent(case.step_size)
    report = check({"Implicit": bl.Implicit(solver, case.steps, bl.CG(tol=1e-10))}, case)
    assert report.agrees
    assert report.uncertainty < 1e-5
    assert set(report.rows[0].slopes.shape) == {2}  # hyper is a dict of two scalars


def test_many_hyperparameters_are_checked_along_random_directions() -> None:
    report = check({"Implicit": bl.Implicit(GD, RIDGE.steps, bl.CG(1e-12))}, directions=3, seed=1)
    assert RIDGE.exact is not None
    _, grad = RIDGE.exact(RIDGE.hyper)
    assert report.directions.shape == (3, 4)
    np.testing.assert_allclose(np.linalg.norm(report.directions, axis=1), 1)
    np.testing.assert_allclose(report.reference, report.directions @ grad, rtol=1e-9)
    np.testing.assert_allclose(report.rows[0].slopes, report.directions @ grad, rtol=1e-9)
    assert "3 random directions of 4 coordinates" in str(report)


VERDICTS = {
    "few steps": (bl.Reverse(GD, 2), "off: the inner problem is not solved"),
    "noise": (bl.Forward(bl.SGD(0.2, batch_size=2), 50), "minibatch noise"),
    "loose": (
        bl.Implicit(GD, RIDGE.steps, bl.CG(max_steps=1)),
        "off: the adjoint system is not solved: lower its tol or raise max_steps",
    ),
    "unstable": (bl.Implicit(bl.GradientDescent(1.2), 20), "diverging: .* smaller step size"),
    "exploded": (bl.Reverse(bl.GradientDescent(50.0), RIDGE.steps), "diverged: .* smaller step"),
    "right": (bl.Implicit(GD, RIDGE.steps, bl.CG(tol=1e-10)), "^agrees$"),
}


@pytest.fixture(scope="module")
def judged() -> bl.CheckReport:
    return check({name: estimator for name, (estimator, _) in VERDICTS.items()})


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_names_the_cause(judged: bl.CheckReport, name: str) -> None:
    (row,) = (row for row in judged.rows if row.name == name)
    assert re.search(VERDICTS[name][1], row.verdict)
    assert row.agrees == (name == "right")
    assert not judged.agrees


def test_the_table_has_a_line_for_each(judged: bl.CheckReport) -> None:
    lines = str(judged).splitlines()
    first = 3
    assert lines[0].startswith("value 0.633556; central differences along all 4 coordinates")
    assert lines[1].startswith("start |w| = 0 (loss 2.05052, |gradient| ")
    assert "minimum |w| = 1.309 (loss 0.630647, |gradient| " in lines[1]
    assert lines[1].endswith(", 1 of its norm away")
    unrolled = ["few steps", "exploded"]
    assert lines[first + len(VERDICTS)] == "will it differentiate?"
    assert [line.split(":")[0] for line in lines[first + len(VERDICTS) + 1 :]] == unrolled
    rows = lines[first : first + len(VERDICTS)]
    for line, row in zip(rows, judged.rows, strict=True):
        assert line.startswith(row.name)
        assert row.verdict in line


def test_a_wrong_derivative_is_noticed() -> None:
    # stop_gradient cuts the part of the derivative that comes through the penalty.
    def inner(w: Any, h: Any, batch: Any) -> Any:
        hidden = jax.lax.stop_gradient(h[0])
        return RIDGE.problem.inner(w, jnp.concatenate([hidden[None] + 0 * h[:1], h[1:]]), batch)

    problem = bl.Problem(inner, RIDGE.problem.outer)
    estimators = {"Implicit": bl.Implicit(GD, RIDGE.steps, bl.CG(tol=1e-10))}
    report = bl.check(problem, RIDGE.hyper, RIDGE.params, RIDGE.data, estimators)
    assert not report.agrees
    assert report.rows[0].slopes[0] == 0
    assert "stop_gradient" in report.rows[0].verdict


def test_a_refusal_is_a_row() -> None:
    def inner(w: Any, h: Any, batch: Any) -> Any:
        return RIDGE.problem.inner(w, h["penalty"], batch)

    def outer(w: Any, h: Any, batch: Any) -> Any:
        return RIDGE.problem.outer(w, None, batch)

    hyper = {"penalty": RIDGE.hyper, "unread": np.array(0.1)}
    problem = bl.Problem(inner, outer)
    estimators = {"Implicit": bl.Implicit(GD, 5)}
    report = bl.check(problem, hyper, RIDGE.params, RIDGE.data, estimators)
    assert report.rows[0].evidence is None
    assert report.rows[0].verdict.startswith(
        "refused: Implicit's hypergradient does not depend on hyper['unread']"
    )
    assert "refused: Implicit's hypergradient does not depend on" in str(report)


def test_an_inner_problem_without_minimum() -> None:
    problem = bl.Problem(lambda w, h, x: h * w + 0 * x[0], lambda w, h, x: w)
    data = bl.Data(inner=np.ones(1), outer=np.ones(1))
    with pytest.raises(ValueError, match="could not solve the inner problem"):
        bl.check(problem, 1.0, 0.0, data)
