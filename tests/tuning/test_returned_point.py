"""The point that is returned is the best at equal accuracy, not the luckiest record."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel as bl
from tests.tuning.test_convergence import PROBLEM, exact_value, make_data

KEY = jax.random.key(0)
ROUGH = bl.Implicit(bl.SGD(bl.Relative(0.5), batch_size=4), steps=10)


@dataclass(frozen=True)
class Lucky:
    """A rule that moves on and remembers one record, which an accident made the best."""

    def init(self, hyper):
        return jnp.zeros((), jnp.int32)

    def update(self, grad, state, hyper=None, **_):
        return jax.tree.map(lambda g: -0.5 * g, grad), state + 1

    def best(self, state, hyper, value):
        return jnp.full(4, 5.0), jnp.asarray(0.0, value.dtype)


bl.extend.register_node(Lucky)


def test_a_lucky_record_is_not_returned_and_an_exact_one_is_not_asked_again():
    data = make_data(0)
    start = np.full(4, -1.0)

    def run(estimator, **how):
        arguments = (PROBLEM, estimator, Lucky(), start, np.zeros(4), data)
        return bl.tune(*arguments, steps=20, key=KEY, max_error=np.inf, **how)

    result = run(ROUGH)
    np.testing.assert_array_equal(result.hyper, result.state.hyper)
    np.testing.assert_array_equal(run(bl.ClosedForm()).hyper, np.full(4, 5.0))
    apart = run(ROUGH, hooks=[bl.Blocks(compare=False)])
    np.testing.assert_array_equal(apart.hyper, np.full(4, 5.0))
    for one, other in ((apart.state.hyper, result.state.hyper), (apart.params, result.params)):
        np.testing.assert_array_equal(one, other)  # either goes on bit for bit


@pytest.mark.parametrize("rule", [bl.outer.Auto(), bl.outer.LBFGS(), bl.outer.LineSearch()])
def test_the_returned_point_is_not_above_the_last_by_more_than_its_noise(rule):
    for seed in range(4):
        data = make_data(seed)
        arguments = (PROBLEM, ROUGH, rule, np.zeros(4), np.zeros(4), data)
        result = bl.tune(*arguments, steps=30, key=jax.random.key(seed), max_error=np.inf)
        returned, last = (
            exact_value(np.asarray(h, float), data) for h in (result.hyper, result.state.hyper)
        )
        noise = np.std(result.history["value"][-5:]) + 0.01 * last
        assert returned < last + noise
