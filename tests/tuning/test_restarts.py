"""Many starts against the same runs one by one, and a problem whose minima are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.spaces import Box, Log, Simplex, Tied

KEY = jax.random.key(2)
NONE = bl.Data(inner=np.zeros(1), outer=np.zeros(1))
EXACT = bl.Implicit(bl.GradientDescent(1.0), steps=1)  # w = hyper after one step
ADAM = optax.adam(0.1)


def well(w: Any, h: Any, x: Any) -> Any:
    """sin 3w + w^2 / 4: minima near -0.5 (the lowest), 1.5 and -2.5; NaN beyond 5."""
    return jnp.sin(3 * w) + w**2 / 4 + 0 * jnp.sqrt(5 - w)


PROBLEM = bl.Problem(lambda w, h, x: jnp.mean((w - h) ** 2) / 2, well)


def restarts(starts: Any, problem: Any = PROBLEM, **more: Any) -> bl.Restarts:
    settings = {"steps": 80, "key": KEY} | more
    return bl.restarts(problem, EXACT, ADAM, jnp.asarray(starts), 0.0, NONE, **settings)


@pytest.mark.extended
def test_every_run_is_the_run_alone_and_the_lowest_is_kept() -> None:
    """The three minima, to which each start falls, by a root of the derivative."""
    starts = np.array([1.2, -0.3, -2.6])
    found = restarts(starts)
    for i, start in enumerate(starts):
        alone = bl.tune(
            PROBLEM, EXACT, ADAM, start, 0.0, NONE, steps=80, key=jax.random.fold_in(KEY, i)
        )
        np.testing.assert_allclose(found.runs.hyper[i], alone.hyper, rtol=1e-4)
        np.testing.assert_allclose(
            found.runs.history["value"][i], alone.history["value"], rtol=1e-4
        )
    slopes = 3 * np.cos(3 * found.runs.hyper) + found.runs.hyper / 2
    np.testing.assert_allclose(slopes, 0, atol=0.05)
    np.testing.assert_allclose(found.values, well(found.runs.params, None, None), rtol=1e-5)
    assert found.index == 1
    assert found.best.hyper == pytest.approx(-0.5, abs=0.02)
    assert (found.message, found.best.message, found.scouted) == (None, None, None)


def test_diverged_runs_are_excluded_and_named() -> None:
    with pytest.warns(bl.DivergenceWarning, match=r"1 of 3 runs diverged and are excluded: 1\."):
        found = restarts([1.2, 6.0, -0.3])
    assert (int(found.index), float(found.values[1])) == (2, np.inf)
    assert bool(found.runs.diverged[1])
    assert not bool(found.best.diverged)
    assert found.message is not None
    assert "excluded: 1." in found.message
    with pytest.warns(bl.DivergenceWarning, match="3 of 3 runs diverged"):
        found = restarts([6.0, 7.0, 8.0])
    assert bool(found.best.diverged)
    assert found.best.message == found.message


def test_a_hybrid_start_descends_from_the_best_points_only() -> None:
    starts = np.linspace(-3, 3, 13)
    found = restarts(starts, keep=3, scout=bl.OneStep(bl.GradientDescent(1.0), steps=1))
    values = np.sin(3 * starts) + starts**2 / 4
    np.testing.assert_allclose(found.scouted, values, rtol=1e-5, atol=1e-6)
    assert list(found.chosen) == list(np.argsort(values)[:3])
    assert found.runs.hyper.shape == (3,)


def test_early_stopping_judges() -> None:
    """By a loss of its own: the minimum at 1.5 is the nearest, and its run ends early."""
    stopping = bl.EarlyStopping(lambda w, h, x: (w - 1.3) ** 2, 0.0, patience=3)
    found = restarts([1.0, -0.3, -2.6], hooks=[stopping])
    assert found.index == 0
    assert found.best.hyper == pytest.approx(1.3, abs=0.1)
    assert "stopped early" in str(found.best.message)
    assert len(found.best.history["value"]) == int(found.best.state.step) < 80


@pytest.mark.slow
def test_it_is_traceable() -> None:
    """Under `jit`, without messages."""

    @jax.jit
    def run(starts: Any) -> Any:
        found = restarts(starts, steps=5)
        return found.index, found.best.hyper

    index, hyper = run(jnp.array([1.2, -0.3]))
    alone = restarts([1.2, -0.3], steps=5)
    assert index == alone.index
    np.testing.assert_allclose(hyper, alone.best.hyper, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_population_fills_the_space() -> None:
    """One point per slice in each coordinate; the first is the given one."""
    space = {"a": Log(1e-4, 1e2), "b": Box(2.0, 3.0), "c": Tied("aab"), "d": Simplex(), "e": Log()}
    problem = bl.Problem(well, well, space=space)
    hyper = {
        "a": np.array([0.1, 1.0]),
        "b": np.array(2.5),
        "c": np.array([1.0, 1.0, 2.0]),
        "d": np.full(3, 1 / 3),
        "e": np.array(5.0),
    }
    n = 9
    points = bl.population(problem, hyper, n, seed=1, spread=1.0)
    problem.require_inside(points)
    for name, leaf in points.items():
        np.testing.assert_allclose(leaf[0], hyper[name], rtol=1e-12)
    unit = [(np.log10(points["a"][1:, i]) + 4) / 6 for i in range(2)]
    unit += [points["b"][1:] - 2, points["c"][1:, 0] / 2, (np.log(points["e"][1:] / 5) + 1) / 2]
    for u in unit:
        assert sorted(np.floor(np.asarray(u) * (n - 1))) == list(range(n - 1))
    other = bl.population(problem, hyper, n, seed=2, spread=1.0)
    assert not np.allclose(other["a"][1:], points["a"][1:])


@pytest.mark.parametrize(
    ("starts", "more", "words"),
    [
        (1.0, {}, "needs a leading axis of as many points"),
        (np.ones(3), {"keep": 4}, "keep=4 must be below the number of start points, 3"),
        (np.ones(3), {"scout": EXACT}, "keep=3 must be below"),
        (np.array([1.0, np.nan]), {}, "starts has 1 NaN"),
    ],
)
def test_bad_input_is_refused(starts: Any, more: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        restarts(starts, **more)


def test_starts_outside_the_space_are_refused() -> None:
    problem = bl.Problem(PROBLEM.inner, well, space=Box(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"starts is 1\.2 at index \[1\], not inside Box"):
        restarts([0.0, 1.2], problem)
