"""An interrupt whose exception somebody drops still ends a run, at the next block."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel as bl
from bilevel.extend import RememberInterrupts

PROBLEM = bl.Problem(
    lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.exp(h) * w**2 / 2,
    lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    quadratic=True,
)
DATA = bl.Data(inner=np.array([2.0]), outer=np.array([1.5]))


def run(steps=10, **blocks):
    arguments = (PROBLEM, bl.ClosedForm(), optax.sgd(0.1), 0.0, 0.0, DATA)
    return bl.tune(*arguments, steps=steps, key=jax.random.key(0), hooks=[bl.Blocks(**blocks)])


def send_and_drop(signum):
    """Do what JAX's garbage-collection callback does to a signal that comes within it."""
    try:
        os.kill(os.getpid(), signum)
        for _ in range(1000):
            threading.Event().wait(0.001)
    except KeyboardInterrupt:
        return
    pytest.fail("the handler has not raised")


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def signum(request):
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    assert signal.getsignal(request.param) is signal.default_int_handler
    signal.signal(request.param, before)


def test_a_dropped_interrupt_ends_tune_at_the_next_block(signum):
    seen = []

    def callback(result):
        seen.append(int(result.state.step))
        if len(seen) == 2:
            send_and_drop(signum)

    with pytest.raises(KeyboardInterrupt):
        run(every=1, callback=callback)
    assert seen == [1, 2]


def test_contexts_may_be_nested_and_other_handlers_are_left_alone(signum):
    def drop_twice():
        with RememberInterrupts(), RememberInterrupts() as inner:
            send_and_drop(signum)
            with pytest.raises(KeyboardInterrupt):
                inner.check()

    with pytest.raises(KeyboardInterrupt):
        drop_twice()
    heard = []
    signal.signal(signum, lambda *_: heard.append(1))
    with RememberInterrupts() as interrupts:
        os.kill(os.getpid(), signum)
        interrupts.check()
    assert heard == [1]
    signal.signal(signum, signal.default_int_handler)


def test_blocks_longer_than_the_run_allocate_no_rows():
    result = run(steps=3, every=10**12)
    assert result.history["value"].shape == (3,)
    np.testing.assert_array_equal(result.history["value"], run(steps=3).history["value"])


def test_an_interrupt_that_became_another_exception_is_an_interrupt() -> None:
    """What JAX does where pytrees are compared while the signal comes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), RememberInterrupts():
            interrupted_and_turned()
        with pytest.raises(ValueError, match="its own"), RememberInterrupts():
            raise ValueError("its own")
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_and_turned() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ValueError("metadata fields") from error
