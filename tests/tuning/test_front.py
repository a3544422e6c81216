"""The front of two outer losses: against a fine grid by NumPy, and where it is known by hand.

Ridge with a log penalty for each of two groups of inputs; two populations want different penalties.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl

pytestmark = pytest.mark.usefixtures("x64")
GROUP, KEY = np.array([0, 0, 1, 1, 1]), jax.random.key(0)


def mean_square(w: Any, X: Any, y: Any) -> Any:
    return jnp.mean((X @ w - y) ** 2) / 2


def inner(w: Any, h: Any, batch: Any) -> Any:
    return mean_square(w, *batch) + jnp.sum(jnp.exp(h)[GROUP] * w**2) / 2


def first(w: Any, h: Any, batch: Any) -> Any:
    """With a term in the penalties alone, which keeps the ends of the front finite."""
    return mean_square(w, *batch[0]) + 0.01 * jnp.sum((h + 1) ** 2)


def second(w: Any, h: Any, batch: Any) -> Any:
    return mean_square(w, *batch[1])


class Populations:
    """Training rows of both, 15 validation rows of each; the losses by NumPy."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=5) * (np.arange(2)[:, None] == GROUP)
        self.X = rng.normal(size=(20, 5))
        self.y = self.X @ truth.sum(0) + rng.normal(size=20)
        self.V = rng.normal(size=(2, 15, 5))
        self.t = np.einsum("kni,ki->kn", self.V, truth) + 0.3 * rng.normal(size=(2, 15))
        outer = tuple((self.V[k], self.t[k]) for k in range(2))
        self.data = bl.Data(inner=(self.X, self.y), outer=outer)

    def losses(self, h: np.ndarray) -> np.ndarray:
        """``[..., 2]`` for ``h [..., 2]``, by dense solves."""
        H = self.X.T @ self.X / 20 + np.exp(h)[..., GROUP, None] * np.eye(5)
        w = np.linalg.solve(H, (self.X.T @ self.y / 20)[:, None])[..., 0]
        errors = np.mean((np.einsum("kni,...i->...kn", self.V, w) - self.t) ** 2, -1) / 2
        errors[..., 0] += 0.01 * np.sum((h + 1) ** 2, -1)
        return errors

    def grid(self, n: int) -> np.ndarray:
        """The losses at ``n^2`` pairs of log penalties."""
        axis = np.linspace(-8, 8, n)
        return self.losses(np.stack(np.meshgrid(axis, axis), -1)).reshape(-1, 2)


def area(values: np.ndarray, end: np.ndarray) -> float:
    """The area dominated up to ``end``, by counting cells of the plane."""
    values = values[np.lexsort(values.T[::-1])]
    lowest = np.minimum.accumulate(values[:, 1])
    right = np.append(np.minimum(values[1:, 0], end[0]), end[0])
    return float(
        np.sum((right - np.minimum(values[:, 0], end[0])) * np.maximum(end[1] - lowest, 0))
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_has_99_percent_of_what_a_grid_finds_with_a_twentieth_of_the_solves(seed: int) -> None:
    case, n = Populations(seed), 41
    problem = bl.Problem(inner, first, quadratic=True)
    front = bl.trace_front(
        problem, second, bl.ClosedForm(), jnp.zeros(2), jnp.zeros(5), case.data, key=KEY
    )
    np.testing.assert_allclose(front.values, case.losses(np.asarray(front.hyper)), rtol=1e-8)
    assert np.all(np.diff(front.values[:, 0]) > 0)
    assert np.all(np.diff(front.values[:, 1]) < 0)
    grid = case.grid(n)
    end = np.asarray(front.values.max(0))
    assert front.solved <= n**2 / 20
    assert area(np.asarray(front.values), end) >= 0.99 * area(grid, end)
    assert front.hypervolume(tuple(end)) == pytest.approx(area(np.asarray(front.values), end))
    assert np.all(np.asarray(front.errors) < 1e-6)


def test_a_parabola_over_a_log_space_is_the_curve_by_hand() -> None:
    """``w* = h``: losses ``log(h)^2`` and ``(log(h) - 1)^2``; their roots add up to 1."""
    problem = bl.Problem(
        lambda w, h, x: jnp.mean((w - h + 0 * x) ** 2) / 2,
        lambda w, h, x: jnp.log(w) ** 2 + 0 * jnp.mean(x),
        space=bl.spaces.Log(),
    )
    data = bl.Data(inner=jnp.zeros(1), outer=jnp.zeros(1))

    def other(w: Any, h: Any, x: Any) -> Any:
        return (jnp.log(w) - 1) ** 2 + 0 * jnp.mean(x)

    front = bl.trace_front(
        problem, other, bl.Auto(), jnp.array(1.3), jnp.array(0.5), data, key=KEY, points=9
    )
    roots = np.sqrt(np.asarray(front.values))
    np.testing.assert_allclose(roots.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(np.log(front.hyper), roots[:, 0], atol=1e-5)
    assert 9 <= len(roots) <= front.solved < 25
    # Steps of equal length: none is more than twice a ninth of the curve's, about 1.6.
    lengths = np.linalg.norm(np.diff(front.values, axis=0), axis=1)
    assert lengths.max() < 2 * 1.6 / 8
    # 1 - int_0^1 (1 - sqrt(x))^2 dx is 5 / 6; a staircase loses less than one step.
    assert 5 / 6 - 1 / 8 < front.hypervolume() < 5 / 6


def test_the_unit_of_a_loss_changes_nothing() -> None:
    """One in billionths, one in millions: the same points."""
    case, start = Populations(2), (jnp.zeros(2), jnp.zeros(5))
    scaled = [
        lambda w, h, batch, loss=loss, unit=unit: unit * loss(w, h, batch)
        for loss, unit in ((first, 1e-9), (second, 1e6))
    ]
    found = []
    for one, other in ((first, second), scaled):
        problem = bl.Problem(inner, one, quadratic=True)
        made = bl.trace_front(problem, other, bl.ClosedForm(), *start, case.data, key=KEY)
        found.append(made)
    assert found[0].solved == found[1].solved
    # What a path of 50 updates makes of rounding; penalties are logarithms.
    np.testing.assert_allclose(found[0].hyper, found[1].hyper, atol=0.1)


def test_losses_that_agree_have_a_front_of_one_point() -> None:
    case = Populations(1)
    problem = bl.Problem(inner, first, quadratic=True)
    start = jnp.zeros(2), jnp.zeros(5), case.data

    def twice(w: Any, h: Any, batch: Any) -> Any:
        return 2 * first(w, h, batch)

    front = bl.trace_front(problem, twice, bl.ClosedForm(), *start, key=KEY)
    assert front.values.shape == (1, 2)
    assert front.values[0, 1] == pytest.approx(2 * float(front.values[0, 0]))
    assert front.hypervolume() == 1


def test_points_that_are_known_to_be_wrong_are_said() -> None:
    """Three steps of gradient descent from 0 differentiate nothing that has converged."""
    case = Populations(1)
    start = jnp.zeros(2), jnp.zeros(5), case.data
    rough = bl.Reverse(bl.GradientDescent(0.02), 3)
    problem = bl.Problem(inner, first)
    with pytest.warns(bl.EvidenceWarning, match="known to be wrong by more than 50 %"):
        front = bl.trace_front(problem, second, rough, *start, key=KEY, points=3)
    assert np.any(np.asarray(front.errors) > 0.5)


def test_refusals() -> None:
    case = Populations(1)
    start = jnp.zeros(2), jnp.zeros(5), case.data
    problem = bl.Problem(inner, first, quadratic=True)
    with pytest.raises(ValueError, match="at least 3"):
        bl.trace_front(problem, second, bl.ClosedForm(), *start, key=KEY, points=2)
    with pytest.raises(TypeError, match="trace_front: second must be a function"):
        bl.trace_front(problem, case.data, bl.ClosedForm(), *start, key=KEY)  # type: ignore[arg-type]
    running = bl.Problem(inner, first, running=lambda w, h, batch: jnp.sum(w))
    with pytest.raises(ValueError, match=r"takes no Problem\(running="):
        bl.trace_front(running, second, bl.Reverse(bl.SGD(0.1, 4), 5), *start, key=KEY)
    diverging = bl.Reverse(bl.GradientDescent(1e3), 300)
    with pytest.raises(ValueError, match="Begin where the inner solver converges"):
        bl.trace_front(problem, second, diverging, *start, key=KEY)
