"""What bl.plan costs, against the runs that would measure the same errors, and whether it is right.

python -m benchmarks.planner
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_breast_cancer, load_diabetes

import bilevel as bl

SIZES = (1, 4, 16, 64)


def squares(w, h, batch):
    """Half the mean squared error."""
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def log_loss(w, h, batch):
    """Logistic loss, labels -1 and 1."""
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


def penalised(loss):
    """With one log-penalty, or one per feature."""
    return lambda w, h, batch: loss(w, h, batch) + jnp.sum(jnp.exp(h) * w**2) / 2


def cases():
    """``name -> (problem, hyper, params, data)``; two small ones, two on real data."""
    small = {name: getattr(bl.testing, name)(seed=0) for name in ("ridge", "logistic")}
    found = {name: (c.problem, c.hyper, c.params, c.data) for name, c in small.items()}
    loaded: Any = load_diabetes(return_X_y=True, scaled=True)
    X, y = loaded
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    data = bl.Data(inner=(X[:300], y[:300]), outer=(X[300:], y[300:]))
    problem = bl.Problem(penalised(squares), squares, quadratic=True)
    found["diabetes"] = problem, np.full(10, -2.0), np.zeros(10), data
    loaded = load_breast_cancer(return_X_y=True)
    X, y = loaded
    X, y = (X - X.mean(0))[:, :10] / X.std(0)[:10], 2.0 * y - 1
    data = bl.Data(inner=(X[:400], y[:400]), outer=(X[400:], y[400:]))
    found["breast cancer"] = bl.Problem(penalised(log_loss), log_loss), -3.0, np.zeros(10), data
    return found


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


def main() -> None:
    """Print a table: promises against measurements, seconds of the plan and of the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--runs", type=int, default=200)
    args = parser.parse_args()
    print(
        "| problem (n, m, p) | asked | promised | measured | steps | plan, s | again, s "
        f"| {args.runs} runs, s | again, s | plan = settings |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, parts in cases().items():
        m = len(parts[3].inner[1])
        sizes = [size for size in SIZES if size < m]
        plan, spent = clock(lambda parts=parts, sizes=sizes: bl.plan(*parts, batch_sizes=sizes))
        n, p = np.size(ravel_pytree(parts[2])[0]), np.size(ravel_pytree(parts[1])[0])
        for tolerance in args.tolerances:
            tight, again = clock(lambda plan=plan, tolerance=tolerance: plan.at(tolerance))
            size, error, first, second = measured(parts, tight, args.runs)
            print(
                f"| {name} ({n}, {m}, {p}) | {tolerance:g} | {tight.error.total:.3g} | "
                f"{size:.3g} ± {error:.1g} | {tight.chosen.steps} | {spent:.1f} | {again:.2f} | "
                f"{first:.1f} | {second:.2f} | {spent / first:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
