"""Bars are as long as what was found, and carry its names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bilevel as bl
from experiments.runs import plots
from tasks.base import Task
from tasks.judges.pictures import MOST, bars, curve, find_interval
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


def boxes(figure: Figure, texts: Any) -> np.ndarray:
    """Lower and upper ends of texts as they are drawn, in pixels, ``[n, 2]``."""
    FigureCanvasAgg(figure).draw()
    found = [text.get_window_extent() for text in texts if text.get_text()]
    return np.array([(box.y0, box.y1) for box in found])


def overlap(ends: np.ndarray) -> bool:
    ends = ends[np.argsort(ends[:, 0])]
    return bool((ends[1:, 0] < ends[:-1, 1]).any())


@pytest.mark.parametrize("count", [3, MOST, 64])
def test_names_of_bars_do_not_overlap(count: int) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    rng = np.random.default_rng(0)
    names = [f"a column with a name {i}" for i in range(count)]
    bars(figure, names, np.exp(rng.normal(size=count)), "penalty", 0.1)
    ends = boxes(figure, figure.axes[0].get_yticklabels())
    assert len(ends) == min(count, MOST)
    assert not overlap(ends)


@pytest.mark.parametrize("values", [np.zeros(12), np.r_[np.full(11, 1.0), 5.0], np.arange(12.0)])
def test_names_of_curves_do_not_overlap(values: np.ndarray) -> None:
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = list(figure.subplots(2, 2).flat)[3]
    rows = np.stack([np.linspace(0, 1, 12), values])
    plots._hyper(axes, np.arange(2), rows, [f"penalty {i}" for i in range(12)])
    axes.set_xlabel("outer step")
    assert not overlap(boxes(figure, axes.texts))


def test_what_is_far_apart_stays_and_the_order_is_kept() -> None:
    np.testing.assert_allclose(plots.spread(np.array([0.2, 0.9, 0.5]), 0.1), [0.2, 0.9, 0.5])
    rng = np.random.default_rng(0)
    places = rng.uniform(-0.1, 1.1, 9)
    moved = plots.spread(places, 0.1)
    assert (np.argsort(moved) == np.argsort(places)).all()
    assert np.diff(np.sort(moved)).min() > 0.1 - 1e-12
    assert np.sort(moved)[-1] <= 0.95 + 1e-12
    assert (plots.spread(np.array([np.nan, 0.5]), 0.1) == [0.05, 0.5]).all()


def test_error_bars_are_the_sandwich_of_the_validation_rows() -> None:
    """``A^{-1} cov(slopes) A^{-1} / n``, by central differences of dense ridge fits in NumPy."""
    with jax.enable_x64(True):
        made = ridge({"degree": 1, "outer": "holdout", "rows": 90}, "global")
    (X, y), (V, v) = (map(np.asarray, part) for part in (made.data.inner, made.data.outer))

    def losses(h: float) -> np.ndarray:
        w = np.linalg.solve(X.T @ X / len(y) + np.exp(h) * np.eye(X.shape[1]), X.T @ y / len(y))
        return (V @ w - v) ** 2

    h, e = min(np.linspace(-7.0, 2.0, 91), key=lambda h: losses(h).mean()), 1e-3
    with jax.enable_x64(True):
        found = find_interval(made.problem, made.data, jnp.asarray(h), made.params)
    assert found is not None
    less, here, more = losses(h - e), losses(h), losses(h + e)
    bend = np.mean(more - 2 * here + less) / e**2
    error = np.std((more - less) / (2 * e), ddof=1) / np.sqrt(len(v)) / abs(bend)
    np.testing.assert_allclose(
        np.log(np.ravel(found)), [h - 1.959964 * error, h + 1.959964 * error], rtol=1e-4
    )


def test_interval_of_one_penalty_is_that_of_the_slopes_of_the_folds() -> None:
    each = np.array([1.0, -0.5, 2.0, 0.3])

    def losses(h: np.ndarray) -> np.ndarray:
        return 3 * (h[:, None] + 1) ** 2 / 2 + each * h[:, None]

    figure = Figure()
    curve(figure, losses, 1.0, float(np.exp(-1.2)))
    reach = 1.96 * np.std(each, ddof=1) / 2 / 3
    labels = figure.axes[0].get_legend_handles_labels()[1]
    ends = f"{np.exp(-1.2 - reach):.2g} to {np.exp(-1.2 + reach):.2g}"
    assert f"95 % interval, {ends}" in labels


def test_bars_carry_the_intervals_where_rows_decide() -> None:
    figure = Figure()
    low, high = np.array([0.5, 0.0, np.nan]), np.array([2.0, np.inf, 3.0])
    bars(figure, ["a", "b", "c"], np.array([1.0, 2.0, 1.5]), "penalty", 0.1, (low, high))
    (axes,) = figure.axes
    assert "none where they do not decide" in axes.get_xlabel()
    (container,) = [c for c in axes.containers if c.__class__.__name__ == "ErrorbarContainer"]
    (segments,) = container[2]
    np.testing.assert_allclose(segments.get_segments(), [[[0.5, 0], [2.0, 0]]])
