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
    folder = Path(cache).expanduser() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _wait(lock)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _wait(lock: FileLock) -> None:
    try:
        with lock.acquire(timeout=LONGEST, poll_interval=0.1):
            return
    except Timeout:
        return  # better twice than never


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
