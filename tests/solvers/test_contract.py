"""Every solver maps over seeds, keeps its state's structure, and compiles once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.core import inner_loss
from bilevel.utils import strip_weak_types
from tests.marks import quick_cases
from tests.solvers.cases import SOLVERS, flat, make


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_vmap_is_the_loop_and_numbers_trace_nothing_again(solver: str, x64: bool) -> None:
    """Over seeds and start points; the numbers are those of the solver, hyper and the data."""
    factory, _, names = SOLVERS[solver]
    case, traces = make(names[0]), []

    @jax.jit
    def run(solver: Any, hyper: Any, data: Any, seed: Any) -> Any:
        traces.append(None)
        start = jax.tree.map(lambda leaf: leaf + 0.1 * seed, case.params)
        key = jax.random.key(seed)
        return bl.solve(case.problem, solver, hyper, start, data, key, steps=6)

    with jax.enable_x64(x64):
        made = (factory(case.curvature), case.hyper, case.data)
        looped = jax.tree.map(lambda *leaves: np.stack(leaves), *(run(*made, k) for k in range(3)))
        run(factory(2 * case.curvature), case.hyper - 0.1, jax.tree.map(np.negative, case.data), 3)
        assert len(traces) == 1
        mapped = jax.vmap(run, (None, None, None, 0))(*made, np.arange(3))
    assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(mapped)} == {8 if x64 else 4}
    rounding = 1e-12 if x64 else 2e-5
    np.testing.assert_allclose(flat(mapped), flat(looped), rtol=rounding, atol=rounding / 10)


def decay(count: Any) -> Any:
    return 0.1 / (1 + count)


SEARCH = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_state_keeps_its_structure(solver: str, dtype: str) -> None:
    """Also in float32 while JAX allows float64; nothing is weakly typed, so nothing recompiles."""
    factory, _, names = SOLVERS[solver]
    case, made = make(names[0]), factory(1.0)
    loss = inner_loss(case.problem)
    with jax.enable_x64(True):
        params, data, hyper = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, dtype), (case.params, case.data.inner, case.hyper)
        )

        def step(params: Any, state: Any) -> Any:
            return made.step(loss, params, hyper, data, jax.random.key(0), state)

        def described(tree: Any) -> Any:
            return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

        state = strip_weak_types(made.init(params, data))
        first = jax.eval_shape(lambda x, y: (x, y), params, state)
        assert described(jax.eval_shape(step, params, state)) == described(first)
        if hasattr(made, "refresh"):
            renewed = jax.eval_shape(made.refresh, state)
            assert described(renewed) == described(first[1])


@quick_cases(
    1,
    ("tx", "plain"),
    [
        (optax.polyak_sgd(), optax.polyak_sgd()),
        (SEARCH, SEARCH),
        (bl.transform(optax.contrib.momo, learning_rate=0.1), optax.contrib.momo(0.1)),
        (bl.transform(optax.adam, learning_rate=decay), optax.adam(decay)),
    ],
    ids=["polyak", "search", "momo", "adam"],
)
def test_optax_is_the_loop_of_its_documentation(tx: Any, plain: Any) -> None:
    """Transformations that ask for the value, the gradient or the loss itself get it."""
    case, solver = make("ridge"), bl.Optax(tx)

    def loss(w: Any) -> Any:
        return case.problem.inner(w, case.hyper, case.data.inner)

    w = jnp.asarray(case.params)
    state = plain.init(w)
    for _ in range(4):
        value, grad = jax.value_and_grad(loss)(w)
        updates, state = plain.update(grad, state, w, value=value, grad=grad, value_fn=loss)
        w = optax.apply_updates(w, updates)
    key = jax.random.key(0)
    found = bl.solve(case.problem, solver, case.hyper, case.params, case.data, key, steps=4)
    np.testing.assert_allclose(found, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 7, None])
@pytest.mark.parametrize("sampling", ["iid", "epoch"])
def test_every_example_is_drawn_equally_often(sampling: str, batch_size: int | None) -> None:
    """Per n draws once (epoch); within 4 standard errors of the mean (iid). 23 rows."""
    n, b = 23, batch_size or 23
    sampler = bl.solvers.sampling.Sampler(batch_size, sampling)
    data, steps = np.zeros(n), 40 * n

    def draw(state: Any, key: Any) -> Any:
        rows, state = sampler.indices(data, key, state)
        return state, rows

    keys = jax.random.split(jax.random.key(1), steps)
    _, rows = jax.lax.scan(draw, sampler.init(data), keys)
    drawn = np.bincount(np.ravel(rows), minlength=n)
    if sampling == "epoch" or batch_size is None:
        np.testing.assert_array_equal(drawn, 40 * b)
        passes = np.sort(np.ravel(rows).reshape(-1, n), axis=1)
        np.testing.assert_array_equal(passes, np.broadcast_to(np.arange(n), passes.shape))
    else:
        standard_error = np.sqrt(40 * b * (1 - 1 / n))
        assert np.abs(drawn - 40 * b).max() < 4 * standard_error  # false alarm: 6e-5 each


@pytest.mark.extended
def test_saga_keeps_the_mean_of_its_table() -> None:
    """Also when a batch, drawn with replacement, holds a row several times."""
    case = make("ridge")
    with jax.enable_x64(True):
        w, key = jnp.zeros(4), jax.random.key(0)
        solver = bl.SAGA(step_size=0.05, batch_size=20)
        state = solver.init(w, case.data.inner)
        for k in range(3):
            key_k = jax.random.fold_in(key, k)
            w, state = solver.step(case.problem.inner, w, case.hyper, case.data.inner, key_k, state)
        _, table, mean, _ = state
        np.testing.assert_allclose(mean, np.mean(table, axis=0), rtol=1e-12)
        assert (np.abs(table).sum(axis=1) > 0).sum() > 20


@pytest.mark.extended
def test_reverse_through_svrg_keeps_no_copies_of_the_data() -> None:
    """500 steps on 2 MB of data: a copy for every step would take a gigabyte."""
    n, d = 5000, 50
    data = bl.Data(inner=(np.ones((n, d), np.float32), np.ones(n, np.float32)), outer=np.ones(1))
    problem = bl.Problem(
        lambda w, h, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) + h * w @ w,
        lambda w, h, batch: w @ w,
    )
    estimator = bl.Reverse(bl.SVRG(step_size=0.01, batch_size=2, period=100), 500, memory="full")

    def run(h: Any) -> Any:
        return bl.hypergradient(problem, estimator, h, jnp.zeros(d), data, jax.random.key(0))[0]

    memory = jax.jit(run).lower(jnp.array(0.1)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 10 * n * d * 4
