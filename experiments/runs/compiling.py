"""Processes that begin at once and share a folder of compiled programs compile each only once."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LONGEST = 900.0  # seconds to wait for another process's compilation
_DONE: set[str] = set()  # what this process has compiled, or has seen compiled


@contextmanager
def one_first(settings: dict[str, Any]) -> Iterator[None]:
    """Let one process alone do what is done within, the first time; others then find its programs.

    They wait until it is through and go on together: programs take seconds to compile, and all
    workers of a sweep would compile the same. A process that dies lets go of its lock. Processes
    of one run over several hosts wait for each other as it is, and for nobody here.
    """
    cache, key = settings["compile_cache"], _key(settings)
    if cache is None or key in _DONE or settings["mesh"]["data"] is not None:
        yield
        return
    _DONE.add(key)
    lock = _held_or_waited_for(Path(cache).expanduser() / "locks" / key)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _held_or_waited_for(path: Path) -> FileLock | None:
    """Return the lock if it was free; else wait until it is. A folder without locks has none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            lock.acquire(timeout=LONGEST, poll_interval=0.1)
            lock.release()
    except OSError:  # it cannot be written to, or the wait was too long: better twice than never
        pass
    return None


def _key(settings: dict[str, Any]) -> str:
    """Of all but the numbers: those change the program seldom, and then only time is lost."""
    nouns = {name: settings[name] for name in ("task", "solver", "estimator", "outer", "precision")}
    text = json.dumps(_without_numbers(nouns), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_numbers(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_numbers(child) for child in value]
    return "" if isinstance(value, int | float) else value
