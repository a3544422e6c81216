"""MAML by `bl.tune` and by hand, in turns: CPU milliseconds per meta-iteration, one thread.

python -m benchmarks.meta [--steps 500] [--turns 5]

Sinusoids, 25 tasks of 10 + 10 points, a network 1-40-40-1, one inner step, Adam.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax

import bilevel as bl
from benchmarks.timing import cpu_clock, single_thread

TASKS, INNER, OUTER = 25, 0.01, 1e-3


def by_hand(network: Any, data: bl.Data, steps: int) -> Any:
    """The shortest program: no evidence, no watch for divergence, the losses as its history."""
    tx = optax.adam(OUTER)

    def loss(weights: Any, batch: Any) -> Any:
        return jnp.mean((network(weights, batch[0]) - batch[1]) ** 2)

    def adapted(weights: Any, inner: Any, outer: Any) -> Any:
        slope = jax.grad(loss)(weights, inner)
        return loss(jax.tree.map(lambda w, g: w - INNER * g, weights, slope), outer)

    def objective(weights: Any, inner: Any, outer: Any) -> Any:
        return jnp.mean(jax.vmap(adapted, in_axes=(None, 0, 0))(weights, inner, outer))

    @jax.jit
    def run(weights: Any, key: Any, inner: Any, outer: Any) -> Any:
        def step(carry: Any, k: Any) -> Any:
            weights, state = carry
            rows = jax.random.randint(jax.random.fold_in(key, k), (TASKS,), 0, len(inner[0]))
            drawn = jax.tree.map(lambda leaf: leaf[rows], (inner, outer))
            value, grad = jax.value_and_grad(objective)(weights, *drawn)
            updates, state = tx.update(grad, state)
            return (optax.apply_updates(weights, updates), state), value

        return jax.lax.scan(step, (weights, tx.init(weights)), jnp.arange(steps))

    return lambda weights, key: run(weights, key, data.inner, data.outer)


def main() -> None:
    """Print the best and the median of the turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    single_thread()
    from tasks.meta import meta

    task, key = meta(), jax.random.key(0)
    network: Any = task.problem.inner.loss.how.network  # pyright: ignore[reportFunctionMemberAccess]
    estimator = bl.Sampled(bl.Reverse(bl.GradientDescent(INNER), steps=1), TASKS)
    outer = bl.transform(optax.adam, learning_rate=OUTER)
    alone = by_hand(network, task.data, args.steps)
    candidates = {
        "by hand": lambda: alone(task.hyper["start"], key),
        "bl.tune": lambda: (
            bl.tune(
                task.problem,
                estimator,
                outer,
                task.hyper,
                task.params,
                task.data,
                steps=args.steps,
                key=key,
                hooks=[bl.Blocks(args.steps)],
            ).hyper
        ),
    }
    first = {name: cpu_clock(call) for name, call in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.turns):
        for name, call in candidates.items():
            times[name].append(1e3 * cpu_clock(call) / args.steps)
    print("| | best ms | median ms | first call, s |\n|---|---:|---:|---:|")
    for name, spent in times.items():
        middle = sorted(spent)[len(spent) // 2]
        print(f"| {name} | {min(spent):.2f} | {middle:.2f} | {first[name]:.1f} |")
    print(f"ratio of best: {min(times['bl.tune']) / min(times['by hand']):.2f}")


if __name__ == "__main__":
    main()
