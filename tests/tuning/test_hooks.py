"""Hooks of `tune`: one of a user's own, the keywords they replace, and the loop by hand."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import ridge
from tests.tuning.test_tune import assert_same

pytestmark = pytest.mark.usefixtures("x64")

CASE = ridge(seed=1)
KEY = jax.random.key(2)
OUTER = bl.transform(optax.sgd, learning_rate=0.1)


def tune(estimator: Any = None, outer: Any = OUTER, **how: Any) -> bl.Result:
    arguments = (estimator or bl.ClosedForm(), outer, CASE.hyper, CASE.params, CASE.data)
    return bl.tune(CASE.problem, *arguments, **({"steps": 8} | how), key=KEY)


@dataclass(frozen=True)
class Budget:
    """Counts inner gradients, and ends the run when they are spent."""

    most: Any

    def init(self, hyper: Any, params: Any) -> Any:
        return jnp.zeros((), jnp.int32)

    def update(self, memory: Any, step: bl.extend.Step) -> Any:
        return memory + step.made.evidence.counts.gradients

    def columns(self, memory: Any, step: bl.extend.Step) -> Any:
        return {"spent": memory}

    def done(self, memory: Any, begun: Any) -> Any:
        return memory >= self.most


bl.extend.register_node(Budget)
ESTIMATOR = bl.Reverse(bl.GradientDescent(0.1), steps=9)


def test_a_hook_of_ones_own_ends_the_run_says_so_and_goes_on_bit_for_bit() -> None:
    whole = tune(ESTIMATOR, hooks=[Budget(47)])
    spent = np.asarray(whole.history["spent"])
    each = int(spent[0])
    np.testing.assert_array_equal(spent, each * np.arange(1, len(spent) + 1))
    assert spent[-2] < 47 <= spent[-1]
    assert whole.stopped
    assert whole.message == f"a hook ended the run after {len(spent)} outer steps."
    cut = tune(ESTIMATOR, steps=2, hooks=[Budget(47)])
    assert not cut.stopped
    on = tune(ESTIMATOR, state=cut.state, hooks=[Budget(47)])
    assert_same((on.hyper, on.state), (whole.hyper, whole.state))
    assert len(tune(ESTIMATOR, state=whole.state, hooks=[Budget(47)]).history["value"]) == 0


def test_the_public_loop_by_hand_is_tune() -> None:
    loop = bl.Loop(CASE.problem, ESTIMATOR, OUTER, CASE.data)
    begin = bl.extend.strip_weak_types((CASE.hyper, CASE.params))
    state, rows, step = loop.init(*begin, KEY), [], jax.jit(bl.Loop.step)
    for _ in range(8):
        state, stop, row = step(loop, state)
        assert not stop.diverged
        rows.append(row)
    result = tune(ESTIMATOR)
    for name, column in result.history.items():
        np.testing.assert_allclose([row[name] for row in rows], column, rtol=1e-12)
    np.testing.assert_allclose(loop.final(state, stop.diverged), result.hyper, rtol=1e-12)


def test_the_keywords_of_before_are_these_hooks_and_warn() -> None:
    def record(hyper: Any, params: Any, estimate: Any) -> Any:
        return {"hyper": hyper}

    seen: list[int] = []
    with pytest.warns(DeprecationWarning, match=r"record=.* hooks=\[...\].*Record") as caught:
        old = tune(every=3, record=record, limit=50.0, callback=lambda r: seen.append(1))
    assert caught[0].filename == __file__
    assert len(seen) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = tune(hooks=[bl.Blocks(3), bl.Record(record), bl.Divergence(50.0)])
    assert_same((old.hyper, old.history), (new.hyper, new.history))


@dataclass(frozen=True)
class Averaged:
    """The mean of `n` draws of the exact hypergradient with noise on it."""

    n: int

    def init(self, params: Any, data: Any) -> Any:
        return bl.extend.init_inner_state(params, ())

    def step(self, problem: Any, hyper: Any, lower: Any, data: Any, key: Any) -> Any:
        exact, lower = bl.ClosedForm().step(problem, hyper, lower, data, key)
        noise = jax.random.normal(key, (self.n, *exact.grad.shape), exact.grad.dtype)
        error = jnp.full_like(exact.grad, 1 / self.n**0.5)
        evidence = replace(exact.evidence, standard_error=error)
        return bl.Estimate(exact.value, exact.grad + noise.mean(0), evidence), lower

    def scaled(self, times: int) -> "Averaged":
        return Averaged(times * self.n)


bl.extend.register_node(Averaged, data_fields=[], meta_fields=["n"])


def test_an_estimator_of_ones_own_is_adaptive_by_one_method() -> None:
    rule = bl.Adaptive(target=1e3, memory=2, most=4)
    work = tune(Averaged(1), hooks=[rule]).history["work"]
    np.testing.assert_array_equal(work, [1, 1, 2, 2, 4, 4, 4, 4])


def test_refusals() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'recrod'"):
        tune(recrod=None)
    with pytest.raises(TypeError, match=r"hooks are objects with init.*got <function"):
        tune(hooks=[lambda hyper, params, estimate: {}])
    with pytest.raises(TypeError, match=r"boolean or bl.Adaptive"):
        tune(adaptive=3)
    with pytest.raises(ValueError, match="more than one hook of the class Budget"):
        tune(hooks=[Budget(1), Budget(2)])
