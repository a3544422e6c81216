"""Spaces against hand-written maps, finite differences, and any float that there is."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bilevel as bl
from bilevel.spaces import Box, Free, Log, Simplex, Softplus, Spaces, Tied

KEY = jax.random.key(0)
# Each with a point inside, and the map from coordinates written a second time.
LEAVES: dict[str, tuple[Any, np.ndarray, Any]] = {
    "Free": (Free(), np.array([-1.0, 2.0]), lambda x: x),
    "Box": (Box(-1.0, 3.0), np.array([0.5, 2.9]), lambda x: -1 + 4 / (1 + np.exp(-x))),
    "low": (Box(low=2.0), np.array([2.1, 9.0]), lambda x: 2 + np.log1p(np.exp(x))),
    "high": (Box(high=-2.0), np.array([-2.1, -9.0]), lambda x: -2 - np.log1p(np.exp(-x))),
    "closed": (Box(-1.0, 3.0, closed=True), np.array([-1.0, 2.0]), lambda x: x),
    "half": (
        Box(0.0, 1.0, closed="low"),
        np.array([0.0, 0.9]),
        lambda x: 1 - np.log1p(np.exp(-x)),
    ),
    "each": (
        Box([0.0, 5.0], [1.0, 6.0]),
        np.array([0.2, 5.5]),
        lambda x: [0, 5] + 1 / (1 + np.exp(-x)),
    ),
    "Log": (Log(), np.array([1e-3, 40.0]), np.exp),
    "Log Box": (
        Log(1e-4, 1e2),
        np.array([0.5, 40.0]),
        lambda x: 10 ** (-4 + 6 / (1 + np.exp(-x))),
    ),
    "Softplus": (
        Softplus(1.0, 0.5),
        np.array([1.1, 4.0]),
        lambda x: 1 + 0.5 * np.log1p(np.exp(2 * x)),
    ),
    "Simplex": (
        Simplex(),
        np.array([0.2, 0.7, 0.1]),
        lambda x: np.exp(x) / np.exp(x).sum(),
    ),
    "Tied": (
        Tied("abab", Log(high=9.0)),
        np.array([0.5, 2.0, 0.5, 2.0]),
        lambda x: 9 * np.exp(-np.log1p(np.exp(-x)))[[0, 1, 0, 1]],
    ),
}


@pytest.mark.usefixtures("x64")
def test_maps_and_chain_rule() -> None:
    """The stated map, its inverse, and the pull-back by central differences of the map itself."""
    spaces = Spaces.of({name: space for name, (space, _, _) in LEAVES.items()})
    points = {name: point for name, (_, point, _) in LEAVES.items()}
    weights = {name: np.linspace(1.0, 2.0, point.size) for name, point in points.items()}

    @jax.jit
    def all_of_it(natural: Any) -> Any:
        free = spaces.free(natural)
        grad = jax.tree.map(jnp.multiply, weights, natural)  # of sum(weights natural^2) / 2
        pulled = spaces.pull(free, grad)
        again = spaces.pull(free, spaces.covector(free, pulled))
        jacobians = {
            name: jax.jacfwd(space.natural)(free[name]) for name, (space, _, _) in LEAVES.items()
        }
        return free, spaces.natural(free), pulled, again, spaces.errors(free, weights), jacobians

    for name, (free, natural, pulled, again, errors, jacobian) in _by_leaf(*all_of_it(points)):
        by_hand, weight = LEAVES[name][2], weights[name]

        def value(x: np.ndarray, by_hand: Any = by_hand, weight: Any = weight) -> float:
            return float(np.sum(weight * np.asarray(by_hand(x)) ** 2) / 2)

        steps = 1e-5 * np.eye(free.size)
        differences = [(value(free + s) - value(free - s)) / 2e-5 for s in steps]
        np.testing.assert_allclose(natural, points[name], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(by_hand(free), points[name], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(pulled, differences, rtol=1e-7, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(again, pulled, rtol=1e-9, atol=1e-12, err_msg=name)
        spread = np.sqrt(weight**2 @ jacobian**2)
        np.testing.assert_allclose(errors, spread, rtol=1e-9, err_msg=name)


def _by_leaf(*trees: Any) -> Any:
    for name in LEAVES:
        yield name, tuple(np.asarray(tree[name]) for tree in trees)


INSIDE = {
    "Box": (Box(1000.0, 1001.0), lambda y: (y > 1000) & (y < 1001)),
    "low": (Box(low=-2.0), lambda y: y > -2),
    "high": (Box(high=0.0), lambda y: y < 0),
    "closed": (Box(0.25, 0.3, closed=True), lambda y: (y >= 0.25) & (y <= np.float32(0.3))),
    "half": (Box(0.0, 1.0, closed="high"), lambda y: (y > 0) & (y <= 1)),
    "Log": (Log(), lambda y: (y > 0) & np.isfinite(y)),
    "Log Box": (Log(1e-6, 1e3), lambda y: (y > np.float32(1e-6)) & (y < 1e3)),
    "Softplus": (Softplus(5.0, 0.01), lambda y: y > 5),
    "Simplex": (Simplex(), lambda y: (y > 0) & (abs(y.sum() - 1) < 1e-6)),
    "Tied": (Tied("aab", Log()), lambda y: (y > 0) & (y[0] == y[1])),
}
MOVED = Spaces.of({name: space for name, (space, _) in INSIDE.items()})


@jax.jit
def moved(free: Any) -> Any:
    """Natural units after a move of the coordinates, and after the way there and back."""
    once = MOVED.natural(MOVED.admit(free))
    return once, MOVED.natural(MOVED.admit(MOVED.free(once)))


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=2, max_size=2))
@example([0.0, 67108952.0])
def test_no_update_leaves_the_space(free: list[float]) -> None:
    """Whatever float32 the outer rule moves to, rounding included."""
    for natural in moved({name: np.asarray(free, np.float32) for name in INSIDE}):
        for name, (_, inside) in INSIDE.items():
            assert np.all(inside(np.asarray(natural[name]))), (name, natural[name])


REFUSED = [
    (
        Log(),
        {"a": np.array([1.0, 0.0])},
        "hyper['a'] is 0 at index [1], not inside Log(low=0.0, high=inf, closed=False): it must "
        "be 0.0 < value < inf.",
    ),
    (Box(0, 1, closed=True), 1.5, "hyper is 1.5, not inside"),
    (Box(0, 1, closed="low"), 1.0, "0.0 <= value < 1.0"),
    (Box(0, [1.0, 2.0]), np.full(3, 0.5), "hyper has shape [3], and the ends of"),
    (Tied("aa"), np.array([1.0, 0.5]), "is 0.5 at index [1], unlike the first entry"),
    (Simplex(), np.array([0.5, 0.6]), "do not sum to 1"),
    (Simplex(), 0.5, "hyper is a scalar"),
    ({"a": Log()}, {"b": 1.0}, "give a space for each leaf"),
]


@pytest.mark.parametrize(("space", "hyper", "words"), REFUSED)
def test_a_start_on_or_outside_the_boundary_is_refused(space: Any, hyper: Any, words: str) -> None:
    """What, where, what was expected; by both verbs."""
    problem = bl.Problem(lambda w, h, x: w, lambda w, h, x: w, space=space)
    arguments = hyper, np.zeros(1), bl.Data(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match=re.escape(words)):
        bl.tune(problem, bl.ClosedForm(), optax.sgd(0.1), *arguments, steps=1, key=KEY)
    with pytest.raises(ValueError, match=re.escape(words)):
        bl.hypergradient(problem, bl.ClosedForm(), *arguments, KEY)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Box(1, 0), "Box: low must be below high"),
        (lambda: Box(0, [1, math.inf]), "all finite or all infinite"),
        (lambda: Box(0, 1, closed="both"), "closed must be False, True, 'low' or 'high'"),
        (lambda: Log(closed=True), "above 0 where it is closed"),
        (lambda: Softplus(scale=0), "scale must be a positive"),
        (lambda: Tied(()), "Tied needs the group of each entry"),
        (lambda: bl.Problem(abs, abs, space={"a": Log}), "spaces such as bl.spaces.Log()"),
    ],
)
def test_spaces_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        make()
