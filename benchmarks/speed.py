"""Forward, Reverse and Implicit against hand-written JAX, in one run.

python -m benchmarks.speed
"""

import argparse

import jax

import bilevel as bl
from benchmarks import hand_written
from benchmarks.problems import CASES, Case
from benchmarks.timing import compare, table


def candidates(case: Case) -> dict:
    """Every candidate as a call without arguments; ours and the hand-written ones."""
    solver = bl.SGD(case.step_size, case.batch)
    key = jax.random.key(0)
    keys = jax.random.split(key, case.steps)
    ours = {
        "Forward": bl.Forward(solver, case.steps),
        "Reverse full": bl.Reverse(solver, case.steps, memory="full"),
        "Reverse checkpoint": bl.Reverse(solver, case.steps, memory="checkpoint"),
        "Implicit": bl.Implicit(solver, case.steps, bl.CG(tol=1e-5)),
    }
    theirs = ["sgd", "forward", "reverse", "reverse_checkpointed", "implicit"]
    if case.name == "ridge":
        theirs += ["forward_ridge", "gram_cholesky"]
        ours["ClosedForm"] = bl.ClosedForm()

    def our(estimator):
        return lambda: bl.hypergradient(
            case.problem, estimator, case.hyper, case.params, case.data, key
        )

    def their(name):
        run = jax.jit(lambda *args: getattr(hand_written, name)(case, *args))
        return lambda: run(keys, case.hyper, case.params, case.data)

    solve = jax.jit(
        lambda hyper, params, data: bl.solve(
            case.problem, solver, hyper, params, data, key, steps=case.steps
        )
    )
    calls = {"hand sgd": their("sgd"), "solve": lambda: solve(case.hyper, case.params, case.data)}
    calls |= {f"hand {name}": their(name) for name in theirs[1:]}
    return calls | {name: our(estimator) for name, estimator in ours.items()}


BASE = {
    "solve": "hand sgd",
    "Forward": "hand forward",
    "Reverse full": "hand reverse",
    "Reverse checkpoint": "hand reverse",
    "Implicit": "hand implicit",
    "ClosedForm": "hand gram_cholesky",
}


def main() -> None:
    """Print one table per problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    for name in args.cases:
        case = CASES[name]()
        print(table(name, compare(candidates(case), args.repeats), BASE))
        jax.clear_caches()


if __name__ == "__main__":
    main()
