"""Bars are as long as what was found, and carry its names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import bilevel as bl
from tasks.base import Task
from tasks.judges.pictures import MOST
from tasks.kernel import kernel_ridge
from tasks.lasso import lasso
from tasks.logistic import logistic
from tasks.multinomial import multinomial
from tasks.ridge import ridge


def drawn(task: Task, hyper: Any) -> tuple[list[str], list[float], str]:
    """Names, ends of the bars, and the title."""
    assert task.picture is not None
    figure = Figure()
    task.picture(figure, hyper, task.params)
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    return names, [bar.get_x() + bar.get_width() for bar in axes.patches], axes.get_title()


def test_penalties_and_length_scales_are_those_found() -> None:
    rng = np.random.default_rng(0)
    tasks = {
        "penalties": [
            ridge({"degree": 1}, "per_feature"),
            logistic({"data": "wine", "outer": "holdout"}, "per_class"),
            multinomial("digits", "per_class", rows=300),
        ],
        "column_names": [kernel_ridge("diabetes")],
    }
    for key, made in ((key, made) for key, group in tasks.items() for made in group):
        found = rng.normal(size=len(made.notes[key]))
        whole = {"length_scales": found, "noise": 0.0} if key == "column_names" else found
        names, ends, title = drawn(made, whole)
        assert names == list(made.notes[key])
        assert ends == pytest.approx(np.exp(found))
        assert not title


def test_of_many_the_farthest_from_the_start_are_shown() -> None:
    made = ridge("diabetes", "per_feature")
    away = np.arange(64) - 31.5  # of the start in logarithms, on both sides
    names, ends, title = drawn(made, np.log(0.1) + away / 9)
    assert title == f"{MOST} of 64, those that are farthest from the line"
    np.testing.assert_allclose(ends, 0.1 * np.exp(away[np.abs(away) > 16.9] / 9))
    assert names == [made.notes["penalties"][i] for i in (*range(15), *range(49, 64))]


def test_coefficients_are_those_of_the_columns_kept() -> None:
    made = lasso({"degree": 1})
    names, ends, _ = drawn(made, np.log(0.1))
    assert len(names) == made.describe(np.log(0.1))["columns kept"]
    assert {"bmi", "s5"} <= set(names)
    assert ends[names.index("bmi")] > 0 > ends[names.index("s3")]


@pytest.mark.parametrize("outer", ["kfold", "holdout"])
@pytest.mark.parametrize("make", [ridge, logistic])
def test_of_one_penalty_the_curve_of_the_criterion_is_drawn(make: Any, outer: str) -> None:
    """The curve at the point that was found is the outer loss, by the task's own problem."""
    made = make({"outer": outer, "degree": 1}, "global")
    assert made.picture is not None
    found = -2.0
    figure = Figure()
    made.picture(figure, found, made.params)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert "logarithmic" in axes.get_xlabel()
    lines: dict[str, Any] = {str(line.get_label()): line for line in axes.lines}
    (point,) = [line for label, line in lines.items() if label.startswith("found")]
    with jax.enable_x64(True):
        data = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, float)), made.data)
        if make is logistic:
            data = jax.tree.map(lambda x, y: x.astype(y.dtype), data, made.data)
        h, params = jnp.asarray(found), jax.tree.map(jnp.zeros_like, made.params)
        key = jax.random.key(0)
        fitted = bl.solve(made.problem, bl.LBFGS(), h, params, data, key, steps=300)
        value = float(made.problem.outer(fitted, h, data.outer))
    assert point.get_ydata()[0] == pytest.approx(value, rel=1e-3)
    curve = lines["outer loss"]
    assert np.interp(np.exp(found), curve.get_xdata(), curve.get_ydata()) == pytest.approx(
        value, rel=0.05
    )
    bands = [label for label in axes.get_legend_handles_labels()[1] if "folds" in label]
    assert len(bands) == (outer == "kfold")
