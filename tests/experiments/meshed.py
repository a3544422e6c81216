"""Run by test_mesh.py in processes of its own, whose devices are virtual ones of the CPU.

    python -m tests.experiments.meshed run ARGUMENTS [+ run ARGUMENTS]... [+ once DEVICES]

`run` is the command line with the tiny task; `once` prints one hypergradient, and what XLA plans
for each device.
"""

import json
import sys
from typing import Any

import jax

import bilevel as bl
from bilevel.estimators.call import compiled_step
from experiments import run
from experiments.runs import mesh
from tests.experiments import tiny


def once(devices: int) -> dict[str, Any]:
    """By full-batch gradient descent; bytes and operations are those of one device."""
    task = tiny.tiny(n=2**14)
    if found := mesh.devices(devices if devices > 1 else None):
        task = mesh.spread(task, found)
    estimator = bl.Implicit(bl.GradientDescent(step_size=0.1), steps=3, linear=bl.CG(max_steps=3))
    key = jax.random.key(0)
    planned, call = compiled_step(task.problem, estimator, task.hyper, task.params, task.data, key)
    about, cost = planned.memory_analysis(), planned.cost_analysis()
    assert about is not None
    assert isinstance(cost, dict)
    estimate, _ = call()
    return {
        "value": float(estimate.value),
        "grad": estimate.grad.tolist(),
        "arguments": about.argument_size_in_bytes,
        "temporary": about.temp_size_in_bytes,
        "operations": cost["flops"],
    }


def main() -> None:
    tiny.install()
    parts = " ".join(sys.argv[1:]).split(" + ")
    for verb, *arguments in map(str.split, parts):
        if verb == "once":
            print(json.dumps(once(int(arguments[0]))))
        else:
            sys.argv = ["run", *arguments]
            print(json.dumps({"status": run.main()}), flush=True)


if __name__ == "__main__":
    main()
