"""Forward, Reverse and Implicit against hand-written JAX, in one run: CPU time of one thread.

OPENBLAS_NUM_THREADS=1 python -m benchmarks.speed
"""

import argparse

import jax

import bilevel as bl
from benchmarks import hand_written
from benchmarks.problems import CASES, Case
from benchmarks.timing import compare, cpu_clock, single_thread, table


def candidates(case: Case) -> dict:
    """Every candidate as a call without arguments; ours and the hand-written ones."""
    solver = bl.SGD(case.step_size, case.batch)
    key = jax.random.key(0)
    ours = {
        "Forward": bl.Forward(solver, case.steps),
        "Reverse full": bl.Reverse(solver, case.steps, memory="full"),
        "Reverse checkpoint": bl.Reverse(solver, case.steps, memory="checkpoint"),
        "Implicit": bl.Implicit(solver, case.steps, bl.CG(tol=1e-5)),
    }
    theirs = ["sgd", "forward", "reverse", "reverse_checkpointed", "implicit"]
    if case.problem.quadratic:
        theirs += ["forward_ridge", "gram_cholesky"]
        ours["ClosedForm"] = bl.ClosedForm()
    for slow in ("Forward", "forward"):  # a tangent per hyperparameter takes minutes
        if sum(x.size for x in jax.tree.leaves(case.hyper)) > MOST:
            ours.pop(slow, None)
            theirs = [name for name in theirs if name != slow]

    def our(estimator):
        return lambda: bl.hypergradient(
            case.problem, estimator, case.hyper, case.params, case.data, key
        )

    def their(name):
        run = jax.jit(lambda *args: getattr(hand_written, name)(case, *args))
        return lambda: run(key, case.hyper, case.params, case.data)

    solve = jax.jit(
        lambda hyper, params, data: bl.solve(
            case.problem, solver, hyper, params, data, key, steps=case.steps
        )
    )
    calls = {"hand sgd": their("sgd"), "solve": lambda: solve(case.hyper, case.params, case.data)}
    calls |= {f"hand {name}": their(name) for name in theirs[1:]}
    return calls | {name: our(estimator) for name, estimator in ours.items()}


MOST = 200  # hyperparameters that forward mode is raced with
BASE = {
    "solve": "hand sgd",
    "Forward": "hand forward",
    "Reverse full": "hand reverse",
    "Reverse checkpoint": "hand reverse_checkpointed",
    "Implicit": "hand implicit",
    "ClosedForm": "hand gram_cholesky",
}


def main() -> None:
    """Print one table per problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--float32", action="store_true", help="in place of float64")
    args = parser.parse_args()
    single_thread()
    jax.config.update("jax_enable_x64", not args.float32)
    for name in args.cases:
        case = CASES[name]()
        print(table(name, compare(candidates(case), args.repeats, cpu_clock), BASE), flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
