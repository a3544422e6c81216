"""What bl.plan costs, against the runs that would measure the same errors, and whether it is right.

On twenty problems. python -m benchmarks.planner, or with momentum: --momentum 0.8, over shuffled
epochs: --sampling epoch
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from benchmarks.planner_cases import all_cases
from bilevel.planning.plan import choose_sizes

LARGEST = 64  # batch size

MARGINS = {True: 0.25, False: 0.5}  # a promise is kept within these: quadratic or not


def clock(call):
    """``(result, seconds of processor time)``: other programs on the machine do not count."""
    begun = time.process_time()
    out = jax.block_until_ready(call())
    return out, time.process_time() - begun


def measured(parts, plan, runs):
    """``(error, its standard error, seconds of the first call, of the second)``."""
    problem, hyper, params, data = parts

    @jax.jit
    def grads(keys, hyper, params, data):
        def one(key):
            estimate, _ = bl.hypergradient(problem, plan.estimator, hyper, params, data, key)
            return ravel_pytree(estimate.grad)[0]

        return jax.vmap(one)(keys)

    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (hyper, params, data))
    keys = jax.random.split(jax.random.key(0), runs)
    _, first = clock(lambda: grads(keys, *arrays))
    found, again = clock(lambda: grads(keys, *arrays))
    exact = ravel_pytree(plan.exact)[0]
    ratios = np.sum((np.asarray(found, float) - exact) ** 2, 1) / np.sum(np.square(exact))
    size = np.sqrt(ratios.mean())
    return size, ratios.std(ddof=1) / np.sqrt(runs) / (2 * size), first, again


def is_kept(promised, size, error, quadratic):
    """Whether a measured error is the promised one within its margin and four standard errors."""
    return abs(size - promised) <= MARGINS[quadratic] * promised + 4 * error


def main() -> None:
    """Print a table: promises against measurements, seconds of the plan and of the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--momentum", type=float, default=None)
    parser.add_argument("--sampling", default="iid")
    args = parser.parse_args()
    print(
        "| problem (n, m, p) | asked | promised | measured | steps | plan, s | again, s "
        f"| {args.runs} runs, s | again, s | plan = settings |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    kept = []
    for name, (quadratic, parts) in all_cases().items():
        m = len(parts[3].inner[1])
        sizes = choose_sizes(m, whole=args.sampling == "epoch")
        settings = {"momentum": args.momentum, "sampling": args.sampling}
        settings["batch_sizes"] = [size for size in sizes if size <= LARGEST]
        plan, spent = clock(lambda parts=parts, settings=settings: bl.plan(*parts, **settings))
        n, p = np.size(ravel_pytree(parts[2])[0]), np.size(ravel_pytree(parts[1])[0])
        for tolerance in args.tolerances:
            tight, again = clock(lambda plan=plan, tolerance=tolerance: plan.at(tolerance))
            size, error, first, second = measured(parts, tight, args.runs)
            kept.append(is_kept(tight.error.total, size, error, quadratic))
            print(
                f"| {name} ({n}, {m}, {p}) | {tolerance:g} | {tight.error.total:.3g} | "
                f"{size:.3g} ± {error:.1g}{'' if kept[-1] else ' (!)'} | {tight.chosen.steps} | "
                f"{spent:.1f} | {again:.2f} | {first:.1f} | {second:.2f} | {spent / first:.1f} |",
                flush=True,
            )
    print(f"{sum(kept)} of {len(kept)} promises kept: within 25 %, 50 % off quadratic losses.")


if __name__ == "__main__":
    main()
