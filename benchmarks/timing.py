"""Side-by-side timing in one process: interleaved repeats, medians, ratios, compile times."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """First call (compile and run) and the median of the later ones, in seconds."""

    name: str
    first: float
    median: float
    best: float


def compare(
    candidates: dict[str, Callable[[], Any]],
    repeats: int = 7,
    seconds: Callable[[Callable[[], Any]], float] | None = None,
) -> dict[str, Timing]:
    """Time every candidate; the repeats take turns, so that a drifting machine hits all alike.

    By the wall clock, unless ``seconds`` is another one, such as :func:`cpu_clock`.
    """
    seconds = seconds or clock
    first, later = {}, {name: [] for name in candidates}
    for name, call in candidates.items():
        first[name] = seconds(call)
    for _ in range(repeats):
        for name, call in candidates.items():
            later[name].append(seconds(call))
    return {
        name: Timing(name, first[name], statistics.median(times), min(times))
        for name, times in later.items()
    }


def table(title: str, timings: dict[str, Timing], base: dict[str, str]) -> str:
    """Markdown: milliseconds, ratio to the base of each row, first call in seconds."""
    lines = [
        f"### {title}",
        "",
        "| candidate | median ms | best ms | ratio to | ratio of best | first call, s |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name, t in timings.items():
        other = base.get(name)
        ratio = f"{t.best / timings[other].best:.2f}" if other else ""
        times = f"{1e3 * t.median:.2f} | {1e3 * t.best:.2f}"
        lines.append(f"| {name} | {times} | {other or ''} | {ratio} | {t.first:.2f} |")
    return "\n".join(lines) + "\n"


def clock(call: Callable[[], Any]) -> float:
    """Seconds of one call, its results waited for."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def single_thread() -> None:
    """XLA on one thread, so that :func:`cpu_clock` compares like with like; before any array."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def cpu_clock(call: Callable[[], Any]) -> float:
    """CPU seconds of one call: what other processes on the machine do hardly shows."""
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start
