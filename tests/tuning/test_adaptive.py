"""`Adaptive`: work grows when the noise asks for it, visibly, and goes on bit for bit."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.estimators.rebuild import scale_work
from bilevel.testing import ridge
from bilevel.tuning.adaptive import WorkLevel
from bilevel.tuning.hooks import Step
from tests.compiling import compilations
from tests.tuning.test_tune import assert_same

pytestmark = pytest.mark.usefixtures("x64")

CASE = ridge(seed=1)
KEY = jax.random.key(2)
CALM = bl.GradientDescent(0.1)
SOLVER = bl.SGD(0.1, batch_size=3)
ONE = bl.Forward(SOLVER, steps=4, average=2)
TWO = bl.Replicated(ONE, 2)
SLOW = bl.transform(optax.sgd, learning_rate=0.5)
EAGER = bl.Adaptive(target=50.0, memory=3, most=4)


def tune(estimator: Any = TWO, rule: Any = EAGER, callback: Any = None, **how: Any) -> bl.Result:
    arguments = (CASE.problem, estimator, SLOW, CASE.hyper, CASE.params, CASE.data)
    hooks = [bl.Blocks(5, callback), *([] if rule is None else [rule])]
    return bl.tune(*arguments, hooks=hooks, **({"steps": 10, "key": KEY} | how))


def estimate(grad: Any, error: Any) -> bl.Estimate:
    evidence = bl.Evidence(standard_error=jnp.asarray(error))
    return bl.Estimate(jnp.array(0.0), jnp.asarray(grad), evidence)


def observe(rule: bl.Adaptive, work: WorkLevel, made: bl.Estimate) -> WorkLevel:
    begun = bl.Loop(CASE.problem, ONE, SLOW, CASE.data).init(CASE.hyper, CASE.params, KEY)
    return rule.update(work, Step(replace(begun, estimate=made), made, made, made))


def test_the_ratio_is_that_of_means_without_the_noise_in_the_gradient() -> None:
    """By hand: two estimates of |grad|^2 = 25, 36 + 9 and |error|^2 = 4, 1."""
    rule = bl.Adaptive(target=1.0, memory=4)
    work = WorkLevel.initial(jnp.zeros(2))
    work = observe(rule, work, estimate([3.0, 4.0], [2.0, 0.0]))
    work = observe(rule, work, estimate([6.0, 3.0], [0.0, 1.0]))
    told = rule.columns(work, Step(*[None] * 4))  # type: ignore[arg-type]
    mean_power, mean_noise = (25 + 45) / 2, (4 + 1) / 2
    np.testing.assert_allclose(told["signal_to_noise"], (mean_power / mean_noise - 1) ** 0.5)


@pytest.mark.parametrize(("error", "level"), [(1.0, 0), (3.0, 1), (0.0, 0), (np.inf, 1)])
def test_work_doubles_after_its_memory_and_below_the_target_only(error: float, level: int) -> None:
    rule, work = bl.Adaptive(target=2.0, memory=3), WorkLevel.initial(jnp.zeros(1))
    for _ in range(2):
        work = observe(rule, work, estimate([4.0], [error]))
        assert work.level == 0
    work = observe(rule, work, estimate([4.0], [error]))
    assert (int(work.level), int(work.count)) == (level, 0 if level else 3)


def test_work_never_exceeds_its_limit() -> None:
    rule, work = bl.Adaptive(memory=1, most=5), WorkLevel.initial(jnp.zeros(1))
    for _ in range(6):
        work = observe(rule, work, estimate([0.0], [1.0]))
    assert int(work.multiple) == 4


@pytest.mark.extended
def test_history_shows_the_work_and_the_gradients_are_those_of_it() -> None:
    history = tune().history
    np.testing.assert_array_equal(history["work"], [1] * 3 + [2] * 3 + [4] * 4)
    np.testing.assert_array_equal(history["gradients"], 2 * (4 * history["work"] + 1))
    assert history["signal_to_noise"].shape == (10,)


def test_cut_anywhere_it_is_the_same_run_bit_for_bit() -> None:
    whole, first = tune(), tune(steps=4)
    second = tune(steps=6, state=first.state)
    assert_same(
        (second.hyper, second.params, second.state), (whole.hyper, whole.params, whole.state)
    )
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.history, second.history)
    assert_same(joined, whole.history)


def test_each_level_is_the_plain_run_of_the_longer_estimator() -> None:
    """The first rows at four times the work, by hand from the state where it begins."""
    begun = tune(steps=6).state
    assert int(begun.memory["Adaptive"].multiple) == 4
    on = tune(steps=2, state=begun)
    calm = replace(begun, memory={})
    plain = tune(scale_work(TWO, 4), steps=2, state=calm, rule=None)
    np.testing.assert_allclose(on.hyper, plain.hyper, rtol=1e-12)
    np.testing.assert_allclose(on.history["value"], plain.history["value"], rtol=1e-12)


@pytest.mark.extended
def test_where_the_signal_suffices_it_is_the_plain_run() -> None:
    calm, plain = tune(rule=bl.Adaptive(target=1e-6)), tune(rule=None)
    assert set(calm.history) - set(plain.history) == {"work", "signal_to_noise"}
    np.testing.assert_array_equal(calm.history["work"], 1)
    np.testing.assert_allclose(calm.hyper, plain.hyper, rtol=1e-12)


def test_callbacks_come_after_every_block_whatever_grows_within() -> None:
    seen: list[int] = []
    tune(callback=lambda result: seen.append(len(result.history["value"])))
    assert seen == [5, 10]


def test_other_numbers_and_a_second_run_compile_nothing() -> None:
    tune()
    with compilations() as count:
        tune(rule=replace(EAGER, target=60.0))
    assert int(count) == 0


def test_divergence_is_still_reported() -> None:
    wild = replace(TWO, estimator=replace(ONE, solver=replace(SOLVER, step_size=5.0)))
    with (
        pytest.warns(bl.DivergenceWarning, match="diverged"),
        pytest.warns(bl.DivergenceWarning, match="above the stability limit where tune starts"),
    ):
        result = tune(wild)
    assert result.diverged


GROWN = {
    "window": (ONE, bl.Forward(SOLVER, steps=12, average=6)),
    "late start": (bl.Forward(SOLVER, 4, 1, 2), bl.Forward(SOLVER, 12, 3, 6)),
    "no noise, implicit": (bl.Implicit(CALM, 4), bl.Implicit(CALM, 12)),
    "no noise, reverse": (bl.Reverse(CALM, 4, truncate=2), bl.Reverse(CALM, 12, truncate=6)),
    "no noise, forward": (bl.Forward(CALM, 4), bl.Forward(CALM, 12)),
    "implicit": (bl.Implicit(SOLVER, 4, average=2), bl.Implicit(SOLVER, 12, average=6)),
    "directions": (bl.Forward(SOLVER, 4, directions=2), bl.Forward(SOLVER, 4, directions=6)),
    "evolution": (bl.Evolution(SOLVER, 4, pairs=2), bl.Evolution(SOLVER, 4, pairs=6)),
    "wrapped": (bl.Predicted(ONE), bl.Predicted(bl.Forward(SOLVER, steps=12, average=6))),
}


@pytest.mark.parametrize("name", GROWN)
def test_work_is_what_reduces_the_noise(name: str) -> None:
    least, more = GROWN[name]
    assert scale_work(least, 3) == more
    assert scale_work(least, 1) == least


@pytest.mark.parametrize("kind", [bl.Forward, bl.Reverse])
def test_a_derivative_that_has_not_converged_is_given_more_steps(kind: Any) -> None:
    """Curvatures 1 and .02: exact by hand; six steps are 90 % off, and 64 times as many are not."""
    scale = jnp.array([1.0, 0.02])
    problem = bl.Problem(
        lambda w, h, x: jnp.sum(scale * (w - h * x[0]) ** 2) / 2,
        lambda w, h, x: jnp.sum((w - x[0]) ** 2) / 2,
    )
    data = bl.Data(jnp.ones((1, 2)), jnp.array([[0.0, 1.0]]))
    short = kind(bl.GradientDescent(1.0), 6)
    how = {"steps": 12, "key": KEY, "warm_start": False}
    start = jnp.array([0.5, 0.0]), jnp.zeros(2), data
    poor = bl.tune(problem, short, optax.sgd(1e-9), *start, max_error=np.inf, **how)
    better = bl.tune(problem, short, optax.sgd(1e-9), *start, hooks=[bl.Adaptive(memory=1)], **how)
    exact = np.array([0.5, -1.0])  # h - (0, 1)

    def error(result: bl.Result) -> float:
        return float(np.linalg.norm(result.estimate.grad - exact) / np.linalg.norm(exact))

    assert error(poor) > 0.5
    assert error(better) < 0.5
    assert better.message is None
    assert better.history["work"][0] == 1
    assert 1 < better.history["work"][-1] <= 64


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"reports none.*Replicated.*Predicted"):
        tune(ONE, evidence="off")
    with pytest.raises(ValueError, match=r"window.*Forward\(\.\.\., average=\)"):
        tune(bl.Replicated(bl.Reverse(SOLVER, 4), 2))
    with pytest.raises(ValueError, match="at 4 times the estimator's work"):
        tune(state=tune().state, rule=None)
    with pytest.raises(ValueError, match="cannot run under jit"):
        jax.jit(lambda key: tune(key=key).hyper)(KEY)
    with pytest.raises(ValueError, match="at least 2"):
        bl.Adaptive(most=1)
    with pytest.raises(ValueError, match="target must be a positive"):
        bl.Adaptive(target=0)
