"""Auto, L-BFGS and JAXopt's L-BFGS in turns: the narrow ends of `frontier.py`, float64, one thread.

python -m benchmarks.in_turns [--cases ridge digits weights many_weights]
"""

import argparse

import jax

from benchmarks.problems import CASES
from benchmarks.timing import cpu_clock, single_thread

RIVALS = ("Auto", "Implicit, L-BFGS", "JAXopt LBFGS")


def main() -> None:
    """Print CPU milliseconds, best and median of the turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    single_thread()
    jax.config.update("jax_enable_x64", True)
    from benchmarks.candidates import ours, peers  # they make a key, which starts the backend
    from benchmarks.frontier import error_of

    print("| problem | candidate | budget | error | best ms | median ms | first call, s |")
    print("|---|---|---|---:|---:|---:|---:|")
    for name in args.cases:
        case = CASES[name]()
        error = error_of(case)
        every = [c for race in (ours, peers) for c in race(case) if c[0].startswith(RIVALS)]
        first = [cpu_clock(call) for *_, call in every]
        turns = [[cpu_clock(call) for *_, call in every] for _ in range(args.turns)]
        for (family, budget, call), begun, times in zip(
            every, first, zip(*turns, strict=True), strict=True
        ):
            best, median = min(times), sorted(times)[len(times) // 2]
            cells = f"{error(call()):.0e} | {1e3 * best:.1f} | {1e3 * median:.1f} | {begun:.1f}"
            print(f"| {name} | {family} | {budget} | {cells} |", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
