"""Counting what XLA compiles, by JAX's own monitoring events."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_compiled: list[str] = []


def _listen(event: str, duration: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled.append(event)


jax.monitoring.register_event_duration_secs_listener(_listen)


class Count:
    """How many programs were compiled since the count began."""

    def __init__(self) -> None:
        self._begun = len(_compiled)

    def __int__(self) -> int:
        return len(_compiled) - self._begun


@contextmanager
def compilations() -> Iterator[Count]:
    """Yield a running count of compilations."""
    yield Count()
