"""Closures that do the same are equal; whatever could make them differ makes them differ."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.utils import take_fingerprint

scale = 1.0


def schedule() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 100), weight_decay=1e-3)
    )


def parts(rate: float = 0.1) -> optax.GradientTransformation:
    return optax.multi_transform({"a": optax.adam(rate), "b": optax.sgd(0.1)}, {"x": "a", "y": "b"})


def own(factor: float) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: -scale * factor * u, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


MADE: dict[str, Callable[[], object]] = {
    "adam": lambda: optax.adam(0.1),
    "another rate": lambda: optax.adam(0.2),
    "an integer": lambda: optax.adam(1),
    "a float": lambda: optax.adam(1.0),
    "in float32": lambda: optax.adam(np.float32(0.1)),
    "an array": lambda: optax.adam(jnp.array(0.1)),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "Nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "schedule": schedule,
    "parts": parts,
    "other parts": lambda: parts(0.2),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "masked": lambda: optax.masked(optax.adam(0.1), {"x": True}),
    "masked otherwise": lambda: optax.masked(optax.adam(0.1), {"x": False}),
    "own": lambda: own(0.5),
    "own, another factor": lambda: own(0.25),
    "negative zero": lambda: own(-0.0),
    "zero": lambda: own(0.0),
}


@pytest.mark.parametrize("name", MADE)
def test_what_does_the_same_is_equal(name: str) -> None:
    first, second = (take_fingerprint(MADE[name]()) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_what_differs_in_anything_is_not() -> None:
    found = {name: take_fingerprint(make()) for name, make in MADE.items()}
    alike = [pair for pair in itertools.combinations(found, 2) if found[pair[0]] == found[pair[1]]]
    assert alike == []


def test_a_global_that_was_set_anew_makes_a_difference(monkeypatch) -> None:
    before = take_fingerprint(own(0.5))
    monkeypatch.setitem(globals(), "scale", 2.0)
    assert take_fingerprint(own(0.5)) != before


def test_what_cannot_be_told_is_only_equal_to_itself() -> None:
    class Rate:
        def __call__(self, count: int) -> float:
            return 0.1

    one, other = Rate(), Rate()
    assert take_fingerprint(one) == take_fingerprint(one)
    assert take_fingerprint(optax.sgd(one)) != take_fingerprint(optax.sgd(other))

    def hidden() -> None: ...

    def alike() -> None: ...

    alike.__code__ = hidden.__code__
    assert take_fingerprint(hidden) == take_fingerprint(alike)
    hidden.setting = 1  # type: ignore[attr-defined]
    assert take_fingerprint(hidden) != take_fingerprint(alike)


def test_containers_are_what_they_hold() -> None:
    assert take_fingerprint([1, 2]) != take_fingerprint((1, 2))
    assert take_fingerprint({"a": 1, "b": 2}) != take_fingerprint({"a": 1, "b": 3})
    assert take_fingerprint(np.arange(3)) != take_fingerprint(np.arange(3.0))
    assert take_fingerprint(jnp.arange(3)) == take_fingerprint(jnp.arange(3))
    loop: list[object] = [1]
    loop.append(loop)
    assert hash(take_fingerprint(loop)) == hash(take_fingerprint(loop))
