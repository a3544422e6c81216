"""Inside `tune`: noise is no divergence, runs go on bit for bit, memory is known beforehand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel import single_loop
from bilevel.single_loop import SAGA, SARAH, STORM, SVRG
from tests.single_loop.quadratics import PROBLEM, make

CASE = make(64, 10)
LAMBDA, W = CASE.start
SCHEDULE = bl.transform(optax.sgd, learning_rate=0.1)


def tune(estimator: Any, outer: Any = SCHEDULE, steps: int = 64, **more: Any) -> bl.Result:
    key = None if "state" in more else jax.random.key(0)
    return bl.tune(PROBLEM, estimator, outer, LAMBDA, W, CASE.data, steps=steps, key=key, **more)


def test_minibatch_noise_is_not_taken_for_divergence() -> None:
    result = tune(bl.SingleLoop(0.1, 4, v=STORM(0.3), check_every=8), steps=96)
    assert not bool(result.diverged)
    assert np.all(np.isfinite(result.history["value"]))


MIXED = bl.SingleLoop(
    bl.transform(optax.adam, learning_rate=0.05),
    7,
    SVRG(5),
    SAGA(),
    STORM(bl.Decay(1.0, 0.5)),
    adjoint_step=0.05,
    sampling="epoch",
)


@pytest.mark.extended
def test_continued_run_repeats_the_whole_one() -> None:
    """With tables, snapshots, epochs and Adam's moments in the state."""
    whole = tune(MIXED, steps=48, hooks=[bl.Blocks(16)])
    part = tune(MIXED, steps=16, hooks=[bl.Blocks(16)])
    rest = tune(MIXED, steps=32, hooks=[bl.Blocks(16)], state=part.state)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(rest.state), strict=True):
        assert bool(jnp.all(a == b))


def test_tables_are_stated_before_the_run() -> None:
    """Five tables, those of 64 / 7 -> 10 blocks, each entry of 10 numbers."""
    params, hyper = jnp.zeros(10, jnp.float32), jnp.zeros(10, jnp.float32)

    def size(rule: Any) -> int:
        return bl.SingleLoop(0.1, 7, rule, rule, rule).memory_bytes(hyper, params, CASE.data)

    tables, means = 5 * 10 * 10, 5 * 10
    points, directions = 3 * 10, 3 * 10
    assert size(SAGA()) - size(SARAH()) == 4 * (tables + means - points - directions)


BAD = [
    (lambda: bl.SingleLoop(-1.0), "step_size must be a positive"),
    (lambda: bl.SingleLoop(0.1, batch_size=(1, 2, 3)), "a pair"),
    (lambda: bl.SingleLoop(0.1, w="saga"), "w must be a rule"),
    (lambda: bl.SingleLoop(0.1, w=SVRG(3), v=SVRG(4)), "one snapshot"),
    (lambda: bl.SingleLoop(0.1, sampling="sorted"), "sampling must be one of"),
    (lambda: bl.DoubleLoop(0.1, lam=SAGA()), "SingleLoop takes the other rules"),
    (lambda: bl.DoubleLoop(0.1, v=SAGA()), "v must be"),
    (lambda: SARAH(0), "period must be at least 1"),
    (lambda: single_loop.HIA(0, 0.1), "steps must be at least 1"),
    (lambda: single_loop.preset("sobba"), "preset must be one of soba"),
    (lambda: tune(bl.SingleLoop(0.1, 65)), "larger than the number of inner examples, 64"),
    (lambda: tune(bl.DoubleLoop(0.1, (4, 65))), "larger than the number of outer examples, 64"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("estimator", [bl.SingleLoop(0.1, 4), bl.DoubleLoop(0.1, 4)])
@pytest.mark.parametrize("part", ["prox", "start"])
def test_problems_that_it_would_get_wrong_are_refused(estimator: Any, part: str) -> None:
    functions = {"prox": lambda w, h, s: w, "start": lambda h, w: w}
    problem = bl.Problem(PROBLEM.inner, PROBLEM.outer, **{part: functions[part]})
    with pytest.raises(ValueError, match=f"{type(estimator).__name__}.*problem.{part}"):
        bl.hypergradient(problem, estimator, LAMBDA, W, CASE.data, jax.random.key(0))
