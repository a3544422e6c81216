"""`tune` is the plain outer loop, whatever it is cut into, compiled with or mapped over."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.testing import logistic, mlp
from tests.marks import quick_cases

CASE = logistic(seed=1)
KEY = jax.random.key(3)
SOLVER = bl.SGD(step_size=0.3, batch_size=4, momentum=0.5, sampling="epoch")
ESTIMATORS = {
    "Forward": bl.Forward(SOLVER, steps=6),
    "Reverse": bl.Reverse(SOLVER, steps=6),
    "Implicit": bl.Implicit(SOLVER, steps=6),
}


ADAM = optax.adam(0.1)  # one object, so that all runs share one program
CHAINS = [("Forward", True), ("Reverse", True), ("Implicit", False)]


def tune(estimator: Any, outer: Any = ADAM, **more: Any) -> bl.Result:
    arguments = (CASE.problem, estimator, outer, CASE.hyper, CASE.params, CASE.data)
    return bl.tune(*arguments, **({"key": KEY} | more))


def assert_same(a: Any, b: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@quick_cases(1, ("name", "warm_start"), CHAINS)
def test_cut_in_two_it_is_the_same_run_bit_for_bit(name: str, warm_start: bool) -> None:
    whole = tune(ESTIMATORS[name], steps=14, warm_start=warm_start)
    first = tune(ESTIMATORS[name], steps=7, warm_start=warm_start)
    second = tune(ESTIMATORS[name], steps=7, warm_start=warm_start, state=first.state)
    assert_same(
        (second.hyper, second.params, second.state), (whole.hyper, whole.params, whole.state)
    )
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.history, second.history)
    assert_same(joined, whole.history)


def test_the_length_of_a_block_changes_nothing() -> None:
    whole = tune(ESTIMATORS["Reverse"], steps=14)
    cut = tune(ESTIMATORS["Reverse"], steps=14, hooks=[bl.Blocks(5)])
    np.testing.assert_allclose(cut.hyper, whole.hyper, rtol=1e-5)
    assert len(cut.history["value"]) == 14


@pytest.mark.usefixtures("x64")
@quick_cases(1, ("name", "warm_start"), CHAINS)
def test_it_is_the_loop_by_hand(name: str, warm_start: bool) -> None:
    def schedule(count: Any) -> Any:
        return 0.5 / (1 + count)  # optax's own schedules round to float32

    outer = optax.sgd(schedule, momentum=0.9)
    result = tune(ESTIMATORS[name], outer, steps=8, warm_start=warm_start)

    hyper, state, values, residuals = jnp.asarray(CASE.hyper), None, [], []
    velocity = 0.0
    for t in range(8):
        estimate, lower = bl.hypergradient(
            CASE.problem,
            ESTIMATORS[name],
            hyper,
            CASE.params,
            CASE.data,
            jax.random.fold_in(KEY, t),
            state=state,
        )
        state = lower if warm_start else None
        values.append(estimate.value)
        residuals.append(estimate.evidence.inner_residual)
        velocity = 0.9 * velocity + estimate.grad
        hyper = hyper - schedule(t) * velocity
    np.testing.assert_allclose(result.hyper, hyper, rtol=1e-10)
    np.testing.assert_allclose(result.history["value"], values, rtol=1e-10)
    np.testing.assert_allclose(result.history["inner_residual"], residuals, rtol=1e-7)
    np.testing.assert_allclose(result.estimate.grad, estimate.grad, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(lower.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.extended
@pytest.mark.usefixtures("x64")
def test_under_jit_it_is_the_same_run() -> None:
    @jax.jit
    def run(hyper: Any, key: Any) -> bl.Result:
        arguments = (CASE.params, CASE.data)
        return bl.tune(
            CASE.problem,
            ESTIMATORS["Implicit"],
            optax.adam(0.1),
            hyper,
            *arguments,
            steps=9,
            key=key,
        )

    inside, outside = run(CASE.hyper, KEY), tune(ESTIMATORS["Implicit"], steps=9)
    np.testing.assert_allclose(inside.hyper, outside.hyper, rtol=1e-12)
    assert inside.history.keys() == outside.history.keys()
    for name, rows in inside.history.items():
        # atol: a linear residual at rounding is the order in which sums were added.
        outer_rows = outside.history[name]
        np.testing.assert_allclose(rows, outer_rows, rtol=1e-9, atol=1e-15, err_msg=name)


def test_record_adds_to_history_what_belongs_to_each_row() -> None:
    def record(hyper: Any, params: Any, estimate: bl.Estimate) -> dict[str, Any]:
        return {"hyper": hyper, "again": CASE.problem.outer(params, hyper, CASE.data.outer)}

    result = tune(ESTIMATORS["Reverse"], steps=5, hooks=[bl.Record(record)])
    # Row t: the hyperparameters before update t, and the value there.
    assert result.history["hyper"][0] == np.float32(CASE.hyper)
    np.testing.assert_allclose(result.history["again"], result.history["value"], rtol=1e-6)
    assert result.hyper != result.history["hyper"][-1]
    one_less = tune(ESTIMATORS["Reverse"], steps=4)
    assert one_less.hyper == result.history["hyper"][-1]


def test_callback_sees_the_run_grow() -> None:
    seen: list[bl.Result] = []
    result = tune(ESTIMATORS["Reverse"], steps=12, hooks=[bl.Blocks(5, seen.append)])
    assert [len(part.history["value"]) for part in seen] == [5, 10, 12]
    assert_same(seen[-1].history, result.history)
    assert [int(part.state.step) for part in seen] == [5, 10, 12]


def test_history_counts_what_each_step_cost() -> None:
    result = tune(ESTIMATORS["Implicit"], steps=3)
    assert set(result.history) == {
        "value",
        "grad_norm",
        "relative_error",
        "inner_residual",
        "linear_residual",
        "gradients",
        "hvps",
        "jvps",
        "vjps",
    }
    assert (result.history["gradients"] >= 6).all()
    assert (result.history["hvps"] >= 2).all()
    assert (result.history["jvps"] == 0).all()


@quick_cases(1, "solver", [bl.GradientDescent(0.5), bl.SGD(0.5), bl.Optax(optax.sgd(0.5))])
def test_full_batch_solvers_take_data_with_a_leading_axis_of_one(solver: Any) -> None:
    # A quadratic given by its matrix: the one "example" is the problem itself.
    problem = bl.Problem(
        lambda w, h, A: jnp.mean((A[0] @ w - 1) ** 2) + jnp.exp(h) * jnp.sum(w**2),
        lambda w, h, b: jnp.mean((w - b[0]) ** 2),
    )
    data = bl.Data(inner=np.eye(2)[None], outer=np.full((1, 2), 0.8))
    arguments = (problem, bl.Reverse(solver, 40), ADAM, 0.0, np.zeros(2), data)
    result = bl.tune(*arguments, steps=150, key=KEY)
    # inner = (mean (w - 1)^2) + e^h |w|^2 over 2 entries: w* = 1 / (1 + 2 e^h), 0.8 at e^h = 1/8.
    assert float(jnp.exp(result.hyper)) == pytest.approx(1 / 8, rel=1e-2)


def test_trees_at_both_levels() -> None:
    case = mlp(seed=0)
    estimator = bl.Implicit(bl.GradientDescent(0.3), steps=50)
    arguments = (case.problem, estimator, ADAM, case.hyper, case.params, case.data)
    result = bl.tune(*arguments, steps=20, key=KEY)
    assert jax.tree.structure(result.hyper) == jax.tree.structure(case.hyper)
    assert jax.tree.structure(result.params) == jax.tree.structure(case.params)
    assert result.history["value"][-1] < result.history["value"][0]


@pytest.mark.extended
def test_an_outer_transform_with_a_schedule() -> None:
    outer = bl.transform(optax.sgd, learning_rate=optax.linear_schedule(0.1, 0.0, 4))
    decayed = tune(ESTIMATORS["Reverse"], outer, steps=5)
    assert decayed.hyper != np.float32(CASE.hyper)
    # From the fifth update on the rate is 0: a run that goes on stays where it is.
    further = tune(ESTIMATORS["Reverse"], outer, steps=3, state=decayed.state)
    assert further.hyper == decayed.hyper
