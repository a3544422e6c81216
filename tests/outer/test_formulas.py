"""Each rule's steps are its published formula, transcribed in numpy, to 1e-10 in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.outer.trust_region import compute_scales, propose_trial
from tests.outer.playing import exact, play

pytestmark = pytest.mark.usefixtures("x64")

START = np.array([0.2, 0.1, 2.0])
MATRIX = np.array([[3.0, 0.5, 0.2], [0.5, 2.0, -0.3], [0.2, -0.3, 0.5]])


def value(x: Any) -> Any:
    return x @ jnp.asarray(MATRIX) @ x / 2 + 0.1 * jnp.sum(jnp.cos(3 * x)) + 1


def known(x: np.ndarray) -> tuple[float, np.ndarray]:
    return x @ MATRIX @ x / 2 + 0.1 * np.cos(3 * x).sum() + 1, MATRIX @ x - 0.3 * np.sin(3 * x)


def points(rule: Any, steps: int) -> np.ndarray:
    run = jax.jit(lambda x: play(rule, exact(value), x, steps, jax.random.key(0)).points)
    return np.asarray(run(jnp.asarray(START)))


def same(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


def test_adagrad_norm() -> None:
    x, total, path = START, 0.0, [START]
    for _ in range(5):
        gradient = known(x)[1]
        total += gradient @ gradient
        x = x - 0.7 * gradient / np.sqrt(total)
        path.append(x)
    same(points(bl.outer.AdaGradNorm(0.7), 6), path)


def test_polyak() -> None:
    x, path = START, [START]
    for _ in range(5):
        f, gradient = known(x)
        step = max(f - 0.5, 0) / (0.8 * gradient @ gradient)
        x = x - min(step, 0.6 / np.abs(gradient).max()) * gradient
        path.append(x)
    same(points(bl.outer.Polyak(lower=0.5, scaling=0.8, longest=0.6), 6), path)


def test_distance_over_gradients_is_that_of_optax() -> None:
    first = 0.05
    theirs = optax.contrib.dog(init_step=("heuristic", first), eps=0.0)
    ours = bl.outer.DoG(first)

    @jax.jit
    def both(x: Any) -> Any:
        def advance(carry: Any, _: Any) -> Any:
            x, state = carry
            updates, state = theirs.update(jax.grad(value)(x), state, x)
            return (optax.apply_updates(x, updates), state), x

        path = jax.lax.scan(advance, (x, theirs.init(x)), length=8)[1]
        return path, play(ours, exact(value), x, 8, jax.random.key(0)).points

    expected, got = both(jnp.asarray(START))
    same(got, expected)


def test_its_average_is_the_polynomial_one() -> None:
    path = points(bl.outer.DoG(0.1), 7)
    average = np.zeros(3)
    for t, x in enumerate(path, 1):
        average += 9 / (t + 8) * (x - average)
    run = jax.jit(lambda x: play(bl.outer.DoG(0.1), exact(value), x, 7, jax.random.key(0)).final)
    same(run(jnp.asarray(START)), average)


def test_line_search() -> None:
    tolerance, decay = 1e-4, 0.5
    f, g = known(START)
    step = min(0.5 / np.abs(g).max(), f / (g @ g))
    base, path, start, seen = START, [START], START, set()
    for k in range(1, 20):
        trial = base - step * g
        path.append(trial)
        at, slope = known(trial)
        e = tolerance * decay**k * (f + np.linalg.norm(trial - base)) + 8 * 2.0**-52 * f
        parabola = g @ g * step / (2 * (at - f + step * (g @ g)))
        if at - f <= -step / 2 * (g @ g) + e:
            kind, times = "enough", 2.0
        elif at - f <= e:
            kind, times = "lower", np.clip(parabola, 0.5, 1)
        else:
            kind, times = "worse", np.clip(parabola, 0.1, 0.5)
        step *= times
        if kind != "worse":
            base, f, g = trial, at, slope
        seen.add(kind)
        cap = max(1, np.abs(start).max() / 2, np.abs(base - start).max() / 8)
        step = min(step, cap / np.abs(g).max())
    assert seen == {"enough", "lower", "worse"}
    same(points(bl.outer.LineSearch(tolerance, decay), 20), path)


def test_lbfgs_is_bfgs_in_the_scaled_variables_while_its_memory_lasts() -> None:
    steps = 6
    rule = bl.outer.LBFGS()
    run = jax.jit(lambda x: play(rule, exact(value), x, steps, jax.random.key(0)))
    result = run(jnp.asarray(START))
    path, trust = np.asarray(result.points), result.state
    # The same pairs in the dense formula (Nocedal, Wright, eq. 6.17), all accepted, none damped.
    slopes = [known(x)[1] for x in path]
    assert np.all(np.diff([known(x)[0] for x in path]) < 0)
    unit = np.asarray(compute_scales(trust))
    power = slopes[0] ** 2
    for slope in slopes[1:]:
        power = 0.9 * power + 0.1 * slope**2
    same(unit, (power / power.max() + 1e-4) ** (-1 / 8))
    pairs = []
    for a, b, u, v in zip(path, path[1:], slopes, slopes[1:], strict=False):
        s, y = b - a, v - u
        y = y + max(0.1 * abs(u @ s) - s @ y, 0) * s / (s @ s)
        pairs.append((s / unit, y * unit))
    s, y = pairs[-1]
    H = np.eye(3) * (s @ y) / (y @ y)
    for s, y in pairs:
        V = np.eye(3) - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    step = -unit * (H @ (unit * slopes[-1]))
    assert np.linalg.norm(step) < float(trust.radius)
    following = jax.jit(lambda trust: propose_trial(trust)[0])(trust)
    same(following, path[-1] + step)
