"""One exact-moment step against one step of simulated runs: how many runs cost the same?

python -m benchmarks.moments
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import compare
from bilevel.noise import Compressed, LeastSquares, Ridge
from bilevel.noise.moments import rules, run

SIZES = [(5, 50, 5), (20, 500, 20), (100, 2000, 10)]  # n features, m examples, p hyperparameters


def simulate(A, b, J, keys, schedule):
    """SGD and its derivative on single rows, ``E |D|^2`` of ``len(keys)`` runs at once."""
    (m, n), p = A.shape, J.shape[1]

    def step(carry, at):
        x, D = carry
        eta, k = at
        row = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, k), (), 0, m))(keys)
        a = A[row]
        x = x - eta * a * (jnp.sum(a * x, 1) - b[row])[:, None]
        D = D - eta * a[:, :, None] * (jnp.einsum("ra,rap->rp", a, D) - J[row])[:, None]
        return (x, D), jnp.mean(jnp.sum(D**2, (1, 2)))

    start = (jnp.zeros((len(keys), n)), jnp.zeros((len(keys), n, p)))
    return jax.lax.scan(step, start, (schedule, jnp.arange(len(schedule))))[1]


def exact(process, start, rule):
    """The curve of ``E |D - D*|^2`` (ridge: of each hyperparameter)."""

    def observe(now):
        return now.squared_error() if hasattr(now, "squared_error") else now.squared_errors()[1]

    return run(process, start, rule, observe)[1]


def candidates(n, m, p, steps, runs):
    """Every candidate as a call without arguments."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((m, n)) / np.sqrt(n)
    b, J = rng.standard_normal(m), rng.standard_normal((m, p))
    schedule = jnp.full(steps, 0.1)
    rule = rules.sgd(schedule)
    squares = LeastSquares.from_data(A, J, batch_size=1)
    ridge = Ridge.from_data(A, b, 0.1, np.zeros((n, p)), J, batch_size=1)
    forms = {"least squares": (squares, squares.start(jnp.zeros((n, p))))}
    if n <= 30:
        forms["compressed"] = (
            Compressed.from_least_squares(squares),
            squares.start(jnp.zeros((n, p))),
        )
    forms["ridge, joint"] = (ridge, ridge.start(jnp.zeros(n)))
    compiled = jax.jit(exact)
    calls = {
        name: lambda process=process, start=start: compiled(process, start, rule)
        for name, (process, start) in forms.items()
    }
    keys, run = jax.random.split(jax.random.key(0), runs), jax.jit(simulate)
    data = jnp.asarray(A), jnp.asarray(b), jnp.asarray(J)
    return calls | {"simulation": lambda: run(*data, keys, schedule)}


def main() -> None:
    """Print a table: time per step, and the number of simulated runs that costs the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("| n, m, p | candidate | us per step | equal to runs | m n / p |")
    print("|---|---|---:|---:|---:|")
    with jax.enable_x64(True):
        for n, m, p in SIZES:
            timings = compare(candidates(n, m, p, args.steps, args.runs), args.repeats)
            one_run = timings["simulation"].best / args.steps / args.runs
            for name, timing in timings.items():
                step = timing.best / args.steps
                each = f"{step / one_run:.0f}" if name != "simulation" else f"{args.runs}"
                print(f"| {n}, {m}, {p} | {name} | {1e6 * step:.0f} | {each} | {m * n / p:.0f} |")


if __name__ == "__main__":
    main()
