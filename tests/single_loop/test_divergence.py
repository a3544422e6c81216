"""A variable that diverges: noticed within one chunk, named, and the state before it kept.

After 40 calls with good steps, or none, one of a preset's three steps is made 30 times larger. The
curvatures are in [.1, 1], so that the variable grows by up to 3 - 1 per call.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from bilevel import single_loop
from tests.single_loop.quadratics import PROBLEM, make

CASE = make(64, 10)
LAMBDA, W = CASE.start
CHUNK = 32  # outer steps in a block of `tune`
NAMES = {"w": "w (params)", "v": "v (adjoint)", "lam": "lambda (hyper)"}
GOOD, BAD = 0.1, 3.0
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("amigo", "srba", "spaba")]
PRESETS = ["saba", *SLOW]


def tune(preset: str, steps: int, state: Any = None, **sizes: float) -> tuple[bl.Result, int]:
    """The run with steps ``sizes`` of w, v and lam, numbers of one program; how many blocks."""
    w, v, lam = (sizes.get(name, GOOD) for name in NAMES)
    estimator, _ = single_loop.preset(preset, w, batch_size=8, adjoint_step=v)
    _, outer = single_loop.preset(preset, lam, batch_size=8)
    blocks: list[bl.Result] = []
    result = bl.tune(
        PROBLEM,
        estimator,
        outer,
        LAMBDA,
        W,
        CASE.data,
        steps=steps,
        key=None if state else jax.random.key(0),
        state=state,
        hooks=[bl.Blocks(CHUNK, blocks.append)],
    )
    return result, len(blocks)


@cache
def healthy(preset: str) -> bl.Result:
    result, _ = tune(preset, 40)
    assert not result.diverged
    return result


@cache
def diverging(preset: str, variable: str, calls: int) -> tuple[bl.Result, int]:
    with pytest.warns(bl.DivergenceWarning):
        return tune(preset, 96, healthy(preset).state if calls else None, **{variable: BAD})


def norms(state: Any) -> np.ndarray:
    variables = (state.lower.params, state.lower.memory["v"], state.hyper)
    return np.array([np.linalg.norm(x) for x in variables])


@pytest.mark.parametrize("calls", [0, 40])
@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_noticed_within_one_chunk_named_and_refused(preset: str, calls: int) -> None:
    for variable, name in NAMES.items():
        result, blocks = diverging(preset, variable, calls)
        assert (bool(result.diverged), blocks) == (True, 1), variable
        assert f": {name} diverged" in str(result.message)
        rows = len(result.history["value"])
        assert rows == int(result.state.step) - calls < CHUNK
        kept = jax.tree.leaves((result.hyper, result.params, result.state, result.history))
        floats = [x for x in kept if jnp.issubdtype(x.dtype, np.floating)]
        assert all(np.all(np.isfinite(x)) for x in floats)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_state_kept_is_good_and_the_run_goes_on_from_it(preset: str) -> None:
    """Value and hypergradient have not grown more than tenfold, the root of the limit, and a step.

    That step multiplies by what the curvature of a minibatch makes of it: 4.4 in the worst of 2 000
    batches of 8 rows, for a mean curvature of 1.
    """
    before = healthy(preset)
    a, rng = np.asarray(CASE.data.inner[0]), np.random.default_rng(0)
    batches = (a[rng.integers(0, len(a), 8)] for _ in range(2000))
    most = 10 * (1 + BAD * max(np.linalg.norm(rows, 2) ** 2 / 8 for rows in batches))
    for variable in NAMES:
        kept, _ = diverging(preset, variable, 40)
        grown = norms(kept.state) / norms(before.state)
        assert np.all(grown < most), (variable, grown)
        on, _ = tune(preset, 640, kept.state)
        assert not on.diverged, (variable, on.message)
        if preset == "saba":  # recursions keep what they saw till their next full direction
            assert CASE.error(on.hyper) < CASE.error(before.hyper)
