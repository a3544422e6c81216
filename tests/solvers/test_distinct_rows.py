"""Batches without replacement: different rows, every subset as likely, drawn ahead of the steps."""

from collections import Counter
from functools import partial
from itertools import permutations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import chi2

import bilevel as bl
from bilevel.core import draw_distinct_rows, shuffles_all
from bilevel.solvers.sampling import Sampler
from bilevel.testing import ridge
from tests.marks import quick_cases

FALSE_ALARM = 6e-5  # that of four standard errors


def drawn(size: int, n: int, count: int, seed: int) -> np.ndarray:
    """Independent draws, ``[count, size]``."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw_distinct_rows(key, size, n)))(keys))


def assert_alike(counts: list[int]) -> None:
    """Fail if outcomes of one probability are found in such numbers (Pearson's chi-square)."""
    expected = sum(counts) / len(counts)
    found = sum((count - expected) ** 2 for count in counts) / expected
    assert found < chi2.isf(FALSE_ALARM, len(counts) - 1)
    assert found > chi2.ppf(FALSE_ALARM, len(counts) - 1)  # nor too even to be chance


@pytest.mark.parametrize(("n", "size"), [(6, 3), (5, 4), (4, 4), (5, 1)])
def test_every_subset_in_every_order_is_as_likely(n: int, size: int) -> None:
    found = Counter(map(tuple, drawn(size, n, 12_000, seed=n + size).tolist()))
    possible = list(permutations(range(n), size))
    assert set(found) <= set(possible)
    assert_alike([found[one] for one in possible])
    subsets = Counter()
    for one, count in found.items():
        subsets[frozenset(one)] += count
    if len(subsets) > 1:
        assert_alike(list(subsets.values()))


def test_where_all_rows_are_shuffled_the_one_left_out_is_any() -> None:
    n = 66
    assert shuffles_all(n - 1, n)
    rows = drawn(n - 1, n, 6_600, seed=0)
    left_out = n * (n - 1) // 2 - rows.sum(axis=1)
    assert_alike(np.bincount(left_out, minlength=n).tolist())
    np.testing.assert_array_equal(np.sort(rows, 1)[0], np.delete(np.arange(n), left_out[0]))


@pytest.mark.parametrize("n", [1_000, 100_000])
def test_rows_are_different_and_reach_all_examples(n: int) -> None:
    rows = drawn(100, n, 500, seed=1)
    assert (np.diff(np.sort(rows, axis=1)) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < n
    # 50 000 places over ten equal parts of the rows: at most binomial, four standard errors.
    shares = np.bincount(rows.ravel() * 10 // n) / rows.size
    np.testing.assert_array_less(np.abs(shares - 0.1), 4 * np.sqrt(0.09 / rows.size))


def test_the_recipe_by_hand() -> None:
    """A shuffle by transpositions of the whole list, of the same random words."""
    n, size, key = 9, 7, jax.random.key(4)
    words = np.asarray(jax.random.bits(key, (size,), jnp.uint32), np.int64)
    rows = list(range(n))
    for k, word in enumerate(words):
        other = k + int(word % (n - k))
        rows[k], rows[other] = rows[other], rows[k]
    np.testing.assert_array_equal(draw_distinct_rows(key, size, n), rows[:size])


@pytest.mark.parametrize(("n", "size", "count"), [(7, 3, 5), (3000, 20, 300), (70, 69, 90)])
def test_batches_drawn_ahead_are_those_of_the_steps(n: int, size: int, count: int) -> None:
    """In several blocks, of which the last is not full."""
    sampler, data = Sampler(size, "without_replacement"), jnp.arange(n)
    keys = partial(jax.random.fold_in, jax.random.key(3))
    ahead, state = jax.jit(lambda: sampler.ahead(data, keys, (), count))()
    alone = jax.jit(lambda k: sampler.indices(data, keys(k), ())[0])
    np.testing.assert_array_equal(ahead, [alone(k) for k in range(count)])
    assert state == ()


SOLVERS = {
    "momentum": bl.SGD(0.1, 5, momentum=0.5, sampling="without_replacement"),
    "nesterov": bl.SGD(0.1, 5, momentum=0.5, nesterov=True, sampling="without_replacement"),
    "optax": bl.Optax(optax.sgd(0.1), 5, "without_replacement"),
    "svrg": bl.SVRG(0.1, 5, sampling="without_replacement"),
    "saga": bl.SAGA(0.1, 5, sampling="without_replacement"),
}


@quick_cases(3, "name", SOLVERS)
@pytest.mark.usefixtures("x64")
def test_every_solver_takes_them_and_vmap_changes_nothing(name: str) -> None:
    case, solver = ridge(0), SOLVERS[name]
    data, steps = case.data.inner, 6

    def run(key: Any) -> Any:
        return bl.solve(case.problem, solver, case.hyper, case.params, case.data, key, steps=steps)

    keys = jax.random.split(jax.random.key(0), 3)
    found = np.asarray(jax.vmap(run)(keys))
    np.testing.assert_allclose(found[1], run(keys[1]), rtol=1e-10)
    assert not np.allclose(found[0], found[1])

    # One step after another, each drawing for itself.
    w, state = case.params, solver.init(case.params, data)
    for k in range(steps):
        key = jax.random.fold_in(keys[1], k)
        rows = solver.drawn(data, key, state)[0]
        assert len(np.unique(np.asarray(rows), axis=0)) == 5
        w, state = solver.step(case.problem.inner, w, case.hyper, data, key, state)
    np.testing.assert_allclose(found[1], w, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_batch_of_all_examples_is_the_full_batch() -> None:
    case, key = ridge(0), jax.random.key(0)
    n = len(case.data.inner[0])

    def solve(solver: Any) -> Any:
        return bl.solve(case.problem, solver, case.hyper, case.params, case.data, key, steps=5)

    whole = solve(bl.SGD(0.1, n, sampling="without_replacement"))
    np.testing.assert_allclose(whole, solve(bl.SGD(0.1)), rtol=1e-12)


@pytest.mark.extended
def test_a_single_loop_takes_them() -> None:
    """With a batch of all examples a run is that of the full batch, another than with any other."""
    case, key = ridge(0), jax.random.key(0)
    sizes = len(case.data.inner[0]), len(case.data.outer[0])

    def after(batch_size: Any, sampling: str) -> Any:
        estimator = bl.SingleLoop(0.05, batch_size, sampling=sampling, steps=4)
        return bl.hypergradient(case.problem, estimator, case.hyper, case.params, case.data, key)[
            0
        ].grad

    whole = after(sizes, "without_replacement")
    np.testing.assert_allclose(whole, after(None, "iid"), rtol=1e-4, atol=1e-6)
    assert not np.allclose(whole, after(5, "without_replacement"), rtol=1e-3)


@quick_cases(1, "name", SOLVERS)
@pytest.mark.usefixtures("x64")
def test_both_modes_differentiate_the_steps_alike(name: str) -> None:
    case = ridge(0)
    at = case.hyper, case.params, case.data, jax.random.key(1)

    def grad(estimator: Any) -> Any:
        return bl.hypergradient(case.problem, estimator, *at)[0].grad

    solver = SOLVERS[name]
    forward, reverse = grad(bl.Forward(solver, steps=6)), grad(bl.Reverse(solver, steps=6))
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)
