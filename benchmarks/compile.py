"""Where the first call of `hypergradient` spends its time, beside that of hand-written JAX.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.compile
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import jax

import bilevel as bl
from benchmarks import hand_written
from benchmarks.problems import CASES, Case
from benchmarks.timing import cpu_clock, single_thread
from bilevel.estimators.call import compiled_step

TURNS = 3  # the best counts: other work on the machine only adds
HEAD = """\
| candidate | first call, s | ratio | programs | fusions | products | loops | branches |
|---|---:|---:|---:|---:|---:|---:|---:|"""
_PROGRAM = "/jax/core/compile/backend_compile_duration"


def estimators(case: Case) -> dict[str, tuple[Any, str]]:
    """Return our estimators, and the hand-written function that each is compared with."""
    sgd = bl.SGD(case.step_size, case.batch)
    return {
        "Reverse": (bl.Reverse(sgd, case.steps), "reverse"),
        "Reverse checkpoint": (
            bl.Reverse(sgd, case.steps, memory="checkpoint"),
            "reverse_checkpointed",
        ),
        "Implicit": (bl.Implicit(sgd, case.steps, bl.CG(tol=1e-5)), "implicit"),
        "Auto": (bl.Auto(), "implicit"),
    }


@contextmanager
def count_programs() -> Iterator[list[str]]:
    """Fill a list with one entry for each program that XLA compiles."""
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event == _PROGRAM:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def first_call(call: Callable[[], Any]) -> tuple[float, int]:
    """Return CPU seconds of a first call, and how many programs it compiles."""
    jax.clear_caches()
    with count_programs() as compiled:
        seconds = cpu_clock(call)
    return seconds, len(compiled)


def by_hand(case: Case, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the call of hand-written JAX, and what gives its compiled program."""
    args = jax.random.key(0), case.hyper, case.params, case.data
    program = jax.jit(partial(getattr(hand_written, name), case))
    return partial(program, *args), lambda: program.lower(*args).compile()


def ours(case: Case, estimator: Any, evidence: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the call of an estimator, and what gives its compiled program."""
    args = case.hyper, case.params, case.data, jax.random.key(0)
    call = partial(bl.hypergradient, case.problem, estimator, *args, evidence=evidence)
    return call, lambda: compiled_step(replace(case.problem, evidence=evidence), estimator, *args)[
        0
    ]


def row(name: str, call: Callable[[], Any], program: Callable[[], Any], base: float | None) -> Any:
    """Return a line of the table, and the seconds of the first call."""
    turns = [first_call(call) for _ in range(TURNS)]
    seconds = min(turns)[0]
    text = program().as_text()
    parts = [text.count(f" {what}(") for what in ("fusion", "dot", "while", "conditional")]
    ratio = "" if base is None else f"{seconds / base:.2f}"
    cells = [name, f"{seconds:.2f}", ratio, turns[0][1], *parts]
    return "| " + " | ".join(map(str, cells)) + " |", seconds


def main() -> None:
    """Print one table per problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=["diabetes", "ridge"], choices=list(CASES))
    args = parser.parse_args()
    single_thread()
    jax.config.update("jax_enable_x64", True)
    for name in args.cases:
        case = CASES[name]()
        print(f"### {name}\n\n{HEAD}")
        for ours_name, (estimator, hand) in estimators(case).items():
            line, base = row(f"hand {hand}", *by_hand(case, hand), None)
            print(line, flush=True)
            for evidence in ("auto", "off"):
                label = ours_name if evidence == "auto" else f"{ours_name}, no evidence"
                print(row(label, *ours(case, estimator, evidence), base)[0], flush=True)


if __name__ == "__main__":
    main()
