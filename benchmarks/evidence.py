"""What does evidence cost? Hypergradients with and without, beside the same work by hand in JAX.

    python -m benchmarks.evidence [--turns 15] [--cases cleaning rows] [--full]

Two problems whose inner steps see few of many rows: hyper-cleaning of 2 000 images with a small
convolutional network (one weight per image, ten steps of SGD), and a linear model with a million
rows and one penalty per column (a hundred steps). `Reverse` in both; CPU milliseconds, warm, one
thread, candidates in turns.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import bilevel as bl
from benchmarks.timing import cpu_clock, single_thread

BATCH = 64


def cleaning() -> tuple[bl.Problem, bl.Data, Any, Any, float, int]:
    """2 000 digits of 28 x 28 pixels, two in five labels wrong, one weight each; a network."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    images = np.kron(digits.images / 16, np.ones((4, 4)))[:, 2:-2, 2:-2, None].astype(np.float32)
    rows = np.concatenate([rng.permutation(1497), rng.permutation(1497)])[:2000]
    labels = np.where(rng.random(2000) < 0.4, rng.integers(0, 10, 2000), digits.target[rows])
    params = {
        "first": 0.3 * rng.standard_normal((3, 3, 1, 8)),
        "second": 0.1 * rng.standard_normal((3, 3, 8, 16)),
        "last": 0.03 * rng.standard_normal((7 * 7 * 16, 10)),
    }

    def losses(w: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        x = images
        for name in ("first", "second"):
            form = ("NHWC", "HWIO", "NHWC")
            x = jnp.tanh(
                jax.lax.conv_general_dilated(x, w[name], (2, 2), "SAME", dimension_numbers=form)
            )
        logits = jax.nn.log_softmax(x.reshape(len(x), -1) @ w["last"])
        return -jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]

    def inner(w: Any, h: jax.Array, batch: Any) -> jax.Array:
        images, labels, i = batch
        return jnp.mean(jax.nn.sigmoid(h[i]) * losses(w, images, labels))

    problem = bl.Problem(inner, lambda w, h, batch: jnp.mean(losses(w, *batch)))
    data = bl.Data(
        inner=(images[rows], labels, np.arange(2000)), outer=(images[1497:], digits.target[1497:])
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return problem, jax.tree.map(jnp.asarray, data), jnp.zeros(2000), params, 0.1, 10


def rows() -> tuple[bl.Problem, bl.Data, Any, Any, float, int]:
    """Ridge on 10^6 rows of 20 columns, a penalty for each; 1 000 outer rows."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1_001_000, 20), np.float32)
    y = X @ rng.standard_normal(20, np.float32) + rng.standard_normal(len(X), np.float32)

    def loss(w: jax.Array, batch: Any) -> jax.Array:
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2

    problem = bl.Problem(
        lambda w, h, b: loss(w, b) + jnp.sum(jnp.exp(h) * w**2) / 2, lambda w, h, b: loss(w, b)
    )
    data = bl.Data(inner=(X[1000:], y[1000:]), outer=(X[:1000], y[:1000]))
    return problem, jax.tree.map(jnp.asarray, data), jnp.full(20, -3.0), jnp.zeros(20), 0.05, 100


def by_hand(problem: bl.Problem, size: float, steps: int) -> Callable[..., Any]:
    """The same hypergradient as a user would write it: `jax.grad` through a `lax.scan`."""

    def unrolled(hyper: Any, params: Any, data: bl.Data, key: jax.Array) -> jax.Array:
        n = len(jax.tree.leaves(data.inner)[0])

        def step(w: Any, key: jax.Array) -> tuple[Any, None]:
            chosen = jax.random.randint(key, (BATCH,), 0, n)
            batch = jax.tree.map(lambda x: x[chosen], data.inner)
            slopes = jax.grad(problem.inner)(w, hyper, batch)
            return jax.tree.map(lambda w, g: w - size * g, w, slopes), None

        keys = jax.random.split(key, steps)
        params, _ = jax.lax.scan(step, params, keys)
        return problem.outer(params, hyper, data.outer)

    return jax.jit(jax.value_and_grad(unrolled))


CASES = {"cleaning": cleaning, "rows": rows}


def main() -> None:
    """Print best and median CPU milliseconds, and the ratios of the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--full", action="store_true", help='evidence="full" too: minutes')
    args = parser.parse_args()
    single_thread()
    print("| problem | candidate | best ms | median ms | to by hand | to off | first call, s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in args.cases:
        problem, data, hyper, params, size, steps = CASES[name]()
        estimator, key = bl.Reverse(bl.SGD(size, batch_size=BATCH), steps), jax.random.key(0)
        hand = by_hand(problem, size, steps)

        def ours(level: str, case: tuple = (problem, estimator, hyper, params, data, key)) -> Any:
            return bl.hypergradient(*case, evidence=level, max_error=np.inf)[0].grad

        calls = {"by hand": lambda hand=hand, a=(hyper, params, data, key): hand(*a)}
        for level in ("off", "auto", "full")[: 2 + args.full]:
            calls[f'evidence="{level}"'] = lambda ours=ours, level=level: ours(level)
        first = {name: cpu_clock(call) for name, call in calls.items()}
        turns = [{name: cpu_clock(call) for name, call in calls.items()} for _ in range(args.turns)]
        best = {label: min(turn[label] for turn in turns) for label in calls}
        for label in calls:
            median = sorted(turn[label] for turn in turns)[len(turns) // 2]
            ratios = [best[label] / best[other] for other in ("by hand", 'evidence="off"')]
            print(
                f"| {name} | {label} | {1e3 * best[label]:.1f} | {1e3 * median:.1f} | "
                f"{ratios[0]:.2f} | {ratios[1]:.2f} | {first[label]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
