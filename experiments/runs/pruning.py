"""Where a search ends a run of which it expects no more."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Told the outer steps done and the value so far; whether to end the run.
Judge = Callable[[int, float], bool]
_JUDGE: ContextVar[Judge | None] = ContextVar("judge", default=None)


@contextmanager
def judged_by(judge: Judge) -> Iterator[None]:
    """Let `judge` end the run that is made within, in this thread, between two blocks of steps."""
    token = _JUDGE.set(judge)
    try:
        yield
    finally:
        _JUDGE.reset(token)


def find_reason(done: int, value: float | None, steps: int) -> str | None:
    """Return why the run of `steps` outer steps ends after `done` of them; `None` if it goes on.

    A value that is not finite is no business of the judge: the run says itself that it diverged.
    """
    judge = _JUDGE.get()
    if judge is None or value is None or not math.isfinite(value) or not judge(done, value):
        return None
    return (
        f"the search's pruner ended it after {done} of {steps} outer steps, at the value "
        f"{value:.5g}. resume= and its folder go on with it."
    )
