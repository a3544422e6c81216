"""The same calls on the accelerator and on the CPU of its machine, and what float32 costs there.

python -m benchmarks.accelerator [--cases ridge digits weights many_weights large] [--repeats 5]

Milliseconds of a compiled call, the first call in seconds, and the error of the float32
hypergradient against float64 on the CPU: as JAX multiplies matrices by default (on many
accelerators with factors rounded to ten bits), and with `jax_default_matmul_precision=highest`.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax

import bilevel as bl
from benchmarks.problems import CASES, Case, ridge
from benchmarks.timing import compare

STEPS = 200
LARGE = {**CASES, "large": lambda: ridge(100_000, 2000)}


def estimators(case: Case) -> dict[str, Any]:
    """Unrolled, implicit by conjugate gradients, and two single-loop steps."""
    sgd = bl.SGD(case.step_size, batch_size=case.batch)
    descent = bl.GradientDescent(case.step_size)
    linear = bl.CG(tol=1e-6)
    return {
        "Reverse": bl.Reverse(sgd, steps=STEPS),
        "Implicit": bl.Implicit(descent, steps=STEPS, linear=linear),
    }


def converted(tree: Any, dtype: Any) -> Any:
    """Floats as ``dtype``, everything else as it is."""

    def convert(x: Any) -> Any:
        x = np.asarray(x)
        return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x

    return jax.tree.map(convert, tree)


def call(case: Case, estimator: Any, device: Any, dtype: Any = np.float32) -> Any:
    """A function without arguments: the estimate, on that device."""
    numbers = converted((estimator, case.hyper, case.params, case.data), dtype)
    numbers = jax.device_put(numbers, device)
    key = jax.device_put(jax.random.key(0), device)

    @jax.jit
    def run(numbers: Any, key: Any) -> Any:
        estimator, hyper, params, data = numbers
        return bl.hypergradient(case.problem, estimator, hyper, params, data, key)[0].grad

    return lambda: run(numbers, key)


def error(grad: Any, exact: Any) -> float:
    """Relative to the norm."""
    grad, exact = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
        for tree in (grad, exact)
    )
    return float(np.linalg.norm(grad - exact) / np.linalg.norm(exact))


def rows(name: str, case: Case, repeats: int) -> list[str]:
    """The table's rows of one case."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    lines = []
    for label, estimator in estimators(case).items():
        with jax.enable_x64(True):
            exact = call(case, estimator, cpu, np.float64)()
        errors = []
        for precision in (None, "highest"):
            with jax.default_matmul_precision(precision):
                errors.append(error(call(case, estimator, device)(), exact))
        with jax.default_matmul_precision("highest"):
            calls = {"device": call(case, estimator, device), "cpu": call(case, estimator, cpu)}
            times = compare(calls, repeats)
        ours, theirs = times["device"], times["cpu"]
        lines.append(
            f"| {name} | {label} | {1e3 * ours.best:.1f} | {1e3 * theirs.best:.1f} | "
            f"{theirs.best / ours.best:.1f} | {ours.first:.1f} | {errors[0]:.1e} | "
            f"{errors[1]:.1e} |"
        )
    return lines


def single_loops(case: Case, repeats: int, steps: int = 2048) -> list[str]:
    """Microseconds of a step of `tune`, in one block."""
    lines = []
    outer = bl.transform(optax.sgd, learning_rate=0.01)
    for method in ("soba", "saba"):
        estimator, _ = bl.single_loop.preset(
            method, step_size=case.step_size, batch_size=64, sampling="epoch"
        )
        best = {}
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            numbers = jax.device_put(converted((case.hyper, case.params), np.float32), device)
            data = jax.device_put(converted(case.data, np.float32), device)

            def run(numbers: Any = numbers, data: Any = data, estimator: Any = estimator) -> Any:
                result = bl.tune(
                    case.problem,
                    estimator,
                    outer,
                    *numbers,
                    data,
                    steps=steps,
                    hooks=[bl.Blocks(steps)],
                    key=jax.random.key(0),
                )
                assert not result.diverged, result.message
                return result.hyper

            with jax.default_device(device), jax.default_matmul_precision("highest"):
                best[device.platform] = compare({method: run}, repeats)[method].best / steps
        times = ", ".join(f"{platform} {1e6 * t:.0f} us" for platform, t in best.items())
        lines.append(f"{case.name}, {method}, a step: {times}")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(LARGE), choices=list(LARGE))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, {STEPS} inner steps", flush=True)
    print("| case | estimator | ms | CPU ms | ratio | first, s | error, default | highest |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in args.cases:
        print("\n".join(rows(name, LARGE[name](), args.repeats)), flush=True)
    for name in ("digits", "weights"):
        print("\n".join(single_loops(CASES[name](), args.repeats)), flush=True)


if __name__ == "__main__":
    main()
