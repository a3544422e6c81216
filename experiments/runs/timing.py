"""Seconds, with those that JAX spends on making programs told apart."""

import time
from types import TracebackType

import jax


class Stopwatch:
    """Wall-clock seconds inside `with`: `compiling` and `running`, the rest.

    `compiling` is the union of the intervals that JAX itself reports for tracing, lowering and
    compiling (or fetching a compiled program from the persistent cache), so that a trace within a
    trace counts once. Used again, it goes on.
    """

    def __init__(self, running: float = 0.0, compiling: float = 0.0) -> None:
        self.running = running
        self.compiling = compiling

    def __enter__(self) -> "Stopwatch":
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        total = time.perf_counter() - self._start
        jax.monitoring.unregister_event_duration_listener(self._listen)
        compiling = min(covered(self._spans), total)
        self.compiling += compiling
        self.running += total - compiling

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            self._spans.append((end - duration_secs, end))


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals `(begin, end)`."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
