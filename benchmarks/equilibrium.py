"""Error, memory and time of an equilibrium layer's hypergradient, implicit and unrolled.

python -m benchmarks.equilibrium
"""

import argparse

import jax
import optax

import bilevel as bl
from tasks.judges.equilibrium_judge import Judge
from tasks.networks.equilibrium import equilibrium

ESTIMATOR = bl.Implicit(bl.Anderson(tol=1e-5), 30, linear=bl.GMRES(tol=1e-4, max_steps=60))


def main(steps: int) -> None:
    """Train the layer for so many steps, and print the costs at the weights found."""
    task = equilibrium()
    at = task.hyper, task.params, task.data
    found = bl.tune(
        task.problem, ESTIMATOR, optax.adam(0.01), *at, steps=steps, key=jax.random.key(0)
    )
    judge: Judge = task.picture.args[0]  # type: ignore[union-attr]
    print(f"rates of convergence: {task.describe(found.hyper)}\n")
    print("| hypergradient | steps | relative error | memory, MiB | CPU ms |")
    print("|---|---:|---:|---:|---:|")
    for cost in judge.measure(found.hyper):
        memory, ms = cost.memory / 2**20, 1e3 * cost.seconds
        print(f"| {cost.name} | {cost.steps} | {cost.error:.1e} | {memory:.1f} | {ms:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of training before it")
    main(parser.parse_args().steps)
