"""The minibatches of one move of ``SingleLoop``, and what is evaluated on them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.single_loop.batches import Drawn, Minibatches
from bilevel.single_loop.oracles import (
    Mean,
    PointEvaluation,
    Series,
    Variables,
    evaluate_at,
    sum_parts,
)
from bilevel.single_loop.rules import DirectionRule, Sample
from bilevel.single_loop.variance import SVRG
from bilevel.utils import PyTree

KeyOf: TypeAlias = Callable[[int], Array]  # the key of a part of the move
EvaluateAt: TypeAlias = Callable[..., dict[str, PointEvaluation]]  # (points, whole=False)


def draw_both(
    problem: Problem,
    data: Data,
    batches: Minibatches,
    series: Series | None,
    samplers: Sequence[PyTree],
    key: KeyOf,
) -> tuple[tuple[Drawn, Drawn], tuple[PyTree, PyTree], Array, EvaluateAt]:
    """Return ``(minibatches, sampler states, coin, at)``; ``at(points)`` evaluates on them.

    ``at(points, whole=True)`` evaluates on all data.
    """
    inner, outer = batches
    one, inner_state = inner.draw(data.inner, partial(key, 0), samplers[0])
    series_key = key(3)
    drawn: Callable[[Array], Drawn] = lambda _: one  # noqa: E731
    if series is not None:
        drawn, inner_state = inner.series(data.inner, series_key, inner_state, series.steps)
    two, outer_state = outer.draw(data.outer, partial(key, 1), samplers[1])

    def fresh(i: Array) -> Mean:
        return partial(inner.mean, data=data.inner, drawn=drawn(i))

    def at(points: dict[str, Variables], whole: bool = False) -> dict[str, PointEvaluation]:
        if whole:
            on_inner, on_outer = (lambda fn: fn(data.inner)), (lambda fn: fn(data.outer))
            return evaluate_at(
                problem, points, on_inner, on_outer, series, lambda i: on_inner, series_key
            )
        on_inner = partial(inner.mean, data=data.inner, drawn=one)
        on_outer = partial(outer.mean, data=data.outer, drawn=two)
        return evaluate_at(problem, points, on_inner, on_outer, series, fresh, series_key)

    return (one, two), (inner_state, outer_state), jax.random.uniform(key(2)), at


def make_key(key: Array, move: int | Array, part: int) -> Array:
    """Make a key where it is used, perhaps in a branch: it costs as much as a small step."""
    return jax.random.fold_in(key, 4 * move + part)


def as_rule_takes(rule: DirectionRule, parts: tuple) -> tuple:
    """Return the parts of a direction as its rule takes them: one, or one for each level."""
    return parts if rule.by_level else (sum_parts(parts),)


def refresh_points(
    points: dict[str, Variables],
    here: Variables,
    rules: dict[str, DirectionRule],
    due: dict[str, bool | Array],
    count: Array,
) -> dict[str, Variables]:
    """Return the stored points; the first is ``here``, and so is a snapshot that is due."""

    def renew(flag: bool | Array, point: Variables) -> Variables:
        return jax.tree.map(partial(jnp.where, flag), here, point)

    points = dict(points)
    if "previous" in points:
        points["previous"] = renew(count == 0, points["previous"])
    if "snapshot" in points:
        snapshot_due = next(due[n] for n, rule in rules.items() if isinstance(rule, SVRG))
        points["snapshot"] = renew(snapshot_due, points["snapshot"])
    return points


def apply_rules(
    rules: dict[str, DirectionRule],
    memories: dict[str, PyTree],
    now: PointEvaluation,
    past: dict[str, PointEvaluation],
    full: PointEvaluation | None,
    due: dict[str, bool | Array],
    sample: Callable[..., Sample],
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """Return the direction of each variable by its rule, and the rules' new memories."""
    directions, after = {}, {}
    for name, rule in rules.items():
        then = {n: as_rule_takes(rule, getattr(e.parts, name)) for n, e in past.items()}
        seen = sample(
            now=as_rule_takes(rule, getattr(now.parts, name)),
            previous=then.get("previous"),
            snapshot=then.get("snapshot"),
            full=None if full is None else as_rule_takes(rule, getattr(full.parts, name)),
            due=due[name],
        )
        direction, after[name] = rule.direction(seen, memories[name])
        directions[name] = sum_parts(direction)
    return directions, after
