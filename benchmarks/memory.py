"""Memory, time and compile time: what XLA plans for each estimator, and what it costs.

python -m benchmarks.memory
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

import bilevel as bl
from benchmarks import hand_written
from benchmarks.problems import CASES, Case, softmax_loss
from benchmarks.timing import cpu_clock, single_thread
from bilevel.estimators.call import compiled_step

MIB = 2**20


def network(width: int = 64) -> Case:
    """Digits through one hidden layer, one log-penalty per leaf."""
    case = CASES["digits"]()
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "A": jax.random.normal(keys[0], (64, width)) / 8,
        "a": jnp.zeros(width),
        "W": jax.random.normal(keys[1], (width, 10)) / width**0.5,
        "b": jnp.zeros(10),
    }

    def loss(w: Any, batch: Any) -> jax.Array:
        X, y = batch
        return jnp.mean(softmax_loss(w, jnp.tanh(X @ w["A"] + w["a"]), y))

    def inner(w: Any, h: Any, batch: Any) -> jax.Array:
        decay = jax.tree.map(lambda a, b: jnp.exp(a) * jnp.sum(b**2), h, w)
        return loss(w, batch) + sum(jax.tree.leaves(decay)) / 2

    problem = bl.Problem(inner, lambda w, h, batch: loss(w, batch))
    hyper = jax.tree.map(lambda _: jnp.array(-6.0), params)
    return Case("network", problem, case.data, hyper, params, 0.1, 32, 1024)


def plain(case: Case, rematerialise: bool) -> Any:
    """``jax.grad`` through a scan, what a user would write; each step recomputed if asked."""
    made = hand_written.reverse_checkpointed if rematerialise else hand_written.reverse

    def gradient(hyper: Any, params: Any, data: bl.Data, key: Any) -> jax.Array:
        return made(case, key, hyper, params, data)[1]

    return gradient


def row(name: str, case: Case, what: Any, repeats: int) -> dict[str, Any]:
    """Memory, best time and compile time."""
    args = (case.hyper, case.params, case.data, jax.random.key(0))
    made: list[Any] = []

    def build() -> None:
        if hasattr(what, "step"):
            made.extend(compiled_step(case.problem, what, *args))
        else:
            program = jax.jit(what).lower(*args).compile()
            made.extend((program, lambda: program(*args)))

    compile_seconds = cpu_clock(build)
    program, call = made
    call()
    seconds = min(cpu_clock(call) for _ in range(repeats))
    scratch = program.memory_analysis().temp_size_in_bytes
    return dict(name=name, scratch=scratch, seconds=seconds, compile=compile_seconds)


def table(title: str, rows: list[dict[str, Any]], base: int) -> str:
    """Markdown; ratios to row ``base``."""
    lines = [f"### {title}", "", "| candidate | scratch MiB | ratio | ms | ratio | compile, s |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for r in rows:
        memory, time = r["scratch"] / rows[base]["scratch"], r["seconds"] / rows[base]["seconds"]
        lines.append(
            f"| {r['name']} | {r['scratch'] / MIB:.2f} | {memory:.3f} | {1e3 * r['seconds']:.1f} "
            f"| {time:.2f} | {r['compile']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def forward(case: Case, repeats: int) -> str:
    """Does forward memory grow with the number of steps?"""
    solver = bl.SGD(case.step_size, case.batch)
    few = jax.tree.map(lambda x: jnp.ones((4, *x.shape), x.dtype), case.hyper)
    rows = [
        row(f"Forward, {k} steps", case, bl.Forward(solver, k, directions=few), repeats)
        for k in (1_000, 10_000, 100_000)
    ]
    return table(f"Forward on {case.name}, 4 tangents", rows, 0)


def reverse(case: Case, repeats: int) -> str:
    """Full against checkpointed, mixed mode against plain ``jax.grad``."""
    solver, steps = bl.SGD(case.step_size, case.batch), case.steps
    candidates = {
        "plain jax.grad": plain(case, False),
        "plain, each step recomputed": plain(case, True),
        "Reverse full": bl.Reverse(solver, steps, memory="full"),
        "Reverse checkpoint": bl.Reverse(solver, steps, memory="checkpoint"),
    }
    rows = [row(name, case, what, repeats) for name, what in candidates.items()]
    return table(f"Reverse on {case.name}, {steps} steps", rows, 0)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    single_thread()
    print(reverse(network(), args.repeats), flush=True)
    ridge = CASES["ridge"]()
    print(reverse(ridge, args.repeats), flush=True)
    print(forward(ridge, 1), flush=True)


if __name__ == "__main__":
    main()
