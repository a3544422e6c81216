"""Early stopping on a second validation set, against the rule applied by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from tests.compiling import compilations
from tests.marks import quick_cases
from tests.tuning.test_tune import assert_same

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
rng = np.random.default_rng(3)
W = rng.normal(size=6)
X = rng.normal(size=(3, 12, 6))
Y = X @ W + 2 * rng.normal(size=(3, 12))
DATA = bl.Data(inner=(X[0], Y[0]), outer=(X[1], Y[1]))
HELD = (X[2], Y[2])
ADAM = optax.adam(0.2)


def outer(w: Any, h: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def inner(w: Any, h: Any, batch: Any) -> Any:
    return outer(w, h, batch) + jnp.sum(jnp.exp(h) * w**2) / 2


PROBLEM = bl.Problem(inner, outer, quadratic=True)


def record(hyper: Any, params: Any, estimate: Any) -> Any:
    return {"hyper": hyper, "w": params}


def tune(stopping: Any, data: Any = DATA, **more: Any) -> bl.Result:
    arguments = PROBLEM, bl.ClosedForm(), ADAM, jnp.full(6, -1.0), jnp.zeros(6), data
    hooks = [bl.Record(record), bl.Blocks(7), *([] if stopping is None else [stopping])]
    settings = {"steps": 60, "key": KEY, "hooks": hooks} | more
    return bl.tune(*arguments, **settings)


def by_the_rule(losses: np.ndarray, patience: int, least: float = 0.0) -> tuple[int, int]:
    """``(rows, row of the best)``, in plain Python."""
    best, mark, waited = 0, np.inf, 0
    for row, loss in enumerate(losses):
        waited = 0 if loss < mark - least else waited + 1
        mark = loss if waited == 0 else mark
        best = row if row == 0 or loss < losses[best] else best
        if waited == patience:
            return row + 1, best
    return len(losses), best


def held_out(run: bl.Result) -> np.ndarray:
    """The loss of the ridge fits themselves, by NumPy."""
    losses = []
    for h in np.asarray(run.history["hyper"], float):
        w = np.linalg.solve(X[0].T @ X[0] / 12 + np.diag(np.exp(h)), X[0].T @ Y[0] / 12)
        losses.append(np.mean((X[2] @ w - Y[2]) ** 2) / 2)
    return np.array(losses)


@quick_cases(1, ("patience", "least"), [(4, 0.0), (4, 0.01), (1, 0.0)])
def test_it_stops_where_the_rule_says_and_returns_the_best(patience: int, least: float) -> None:
    whole = tune(None)
    losses = held_out(whole)
    rows, best = by_the_rule(losses, patience, least)
    assert best < rows - 1 < 58, "the case must over-fit"
    run = tune(bl.EarlyStopping(outer, HELD, patience, least))
    assert len(run.history["value"]) == rows
    np.testing.assert_allclose(run.history["held_out"], losses[:rows], rtol=1e-10)
    np.testing.assert_allclose(run.hyper, whole.history["hyper"][best], rtol=1e-10)
    np.testing.assert_allclose(run.params, whole.history["w"][best], rtol=1e-9)
    assert bool(run.stopped)
    assert run.message is not None
    assert run.message.startswith(f"stopped early after {rows} outer steps: no better held-out")
    assert run.message.endswith(f"Row {best} of the history is returned.")


def test_enough_patience_changes_nothing_but_what_is_returned() -> None:
    whole, run = tune(None), tune(bl.EarlyStopping(outer, HELD, patience=100))
    assert (run.message, bool(run.stopped)) == (None, False)
    assert_same(run.state.estimate, whole.state.estimate)
    best = int(np.argmin(run.history["held_out"]))
    assert_same((run.hyper, run.params), (run.history["hyper"][best], run.history["w"][best]))


def test_cut_anywhere_it_is_the_same_run_bit_for_bit_and_patience_never_recompiles() -> None:
    stopping = bl.EarlyStopping(outer, HELD, patience=4)
    whole = tune(stopping)
    rows = len(whole.history["value"])
    first = tune(stopping, steps=rows - 2)
    assert first.message is None
    second = tune(stopping, steps=60, state=first.state)
    assert_same(
        (second.hyper, second.params, second.state), (whole.hyper, whole.params, whole.state)
    )
    assert len(second.history["value"]) == 2
    with compilations() as count:
        over = tune(stopping, state=whole.state)
        further = tune(bl.EarlyStopping(outer, HELD, patience=6), state=whole.state)
    assert (len(over.history["value"]), over.message) == (0, whole.message)
    assert len(further.history["value"]) == 2
    assert int(count) <= 3  # slices and joins of histories of other lengths


def test_under_vmap_every_lane_stops_by_itself() -> None:
    held = (jnp.stack([X[2], X[1], X[2]]), jnp.stack([Y[2], Y[1], -Y[2]]))
    patience = jnp.array([4, 4, 2])

    @jax.jit
    @jax.vmap
    def together(held: Any, patience: Any) -> Any:
        run = tune(bl.EarlyStopping(outer, held, patience))
        return run.hyper, run.state.step, run.stopped, run.history["held_out"]

    hyper, steps, stopped, losses = together(held, patience)
    for i in range(3):
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], held)
        alone = tune(bl.EarlyStopping(outer, lane, int(patience[i])))
        rows = len(alone.history["value"])
        assert (int(steps[i]), bool(stopped[i])) == (rows, alone.message is not None)
        np.testing.assert_allclose(hyper[i], alone.hyper, rtol=1e-9)
        np.testing.assert_allclose(losses[i, :rows], alone.history["held_out"], rtol=1e-9)
        assert np.isnan(losses[i, rows:]).all()
    assert list(stopped) == [True, False, True], "the second lane judges by the outer data"


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="patience must be at least 1"):
        bl.EarlyStopping(outer, HELD, patience=0)
    with pytest.raises(ValueError, match="least must be at least 0"):
        bl.EarlyStopping(outer, HELD, least=-1.0)
    with pytest.raises(TypeError, match=r"EarlyStopping\.loss must be a function"):
        bl.EarlyStopping(None, HELD)
    with pytest.raises(ValueError, match=r"EarlyStopping\.data\[0\] has 1 NaN"):
        bl.EarlyStopping(outer, (np.array([np.nan]),))
    with pytest.raises(ValueError, match=r"EarlyStopping\.loss failed on params"):
        tune(bl.EarlyStopping(outer, (X[2][:, :3], Y[2])))
    with pytest.raises(ValueError, match="must return a scalar"):
        tune(bl.EarlyStopping(lambda w, h, b: w, HELD))
    state = tune(None, steps=1).state
    with pytest.raises(ValueError, match="without early stopping, so no best point is known"):
        tune(bl.EarlyStopping(outer, HELD), state=state)
