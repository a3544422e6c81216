"""CPU time of an iteration: our presets and benchmark_bilevel's own solvers, in turns, one process.

python -m benchmarks.benchopt.cost CHECKOUT --data simulated [--files DIR] saba soba srba
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.benchopt.run import ours, prepare, theirs

NAMES = {
    "soba": "SOBA",
    "saba": "SABA",
    "srba": "SRBA",
    "stocbio": "StocBiO",
    "amigo": "AmIGO",
    "mrbo": "MRBO",
    "f2sa": "F2SA",
    "vrbo": "VRBO",
    "fsla": "FSLA",
    "ttsa": "TTSA",
    "bsa": "BSA",
    "sustain": "SUSTAIN",
    "bome": "BOME",
    "pzobo": "PZOBO",
}


class Blocks:
    """A callback that wants so many blocks and notes the CPU time between."""

    def __init__(self, count: int) -> None:
        self.left, self.times = count, []

    def __call__(self) -> bool:
        """Whether another block is wanted."""
        self.times.append(time.process_time())
        self.left -= 1
        return self.left >= 0


def iteration(solver: Any, iterations: int) -> float:
    """Seconds of one iteration, in the second of two blocks: the first measures more.

    A block of thousands has its share of measurements on all data: they come at calls 1, 2, 4, ...
    """
    blocks = Blocks(2)
    solver.run(blocks)
    return (blocks.times[2] - blocks.times[1]) / iterations


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("methods", nargs="+", choices=list(NAMES))
    parser.add_argument("--data", default="simulated")
    parser.add_argument("--files", type=Path)
    parser.add_argument("--iterations", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, help="ours: moves per call, counted as iterations")
    args = parser.parse_args()
    benchmark, _, given = prepare(args.checkout.resolve(), args.data, args.files)
    for method in args.methods:
        settings: dict[str, Any] = {"eval_freq": args.iterations, "step_size": 0.01}
        if method in ("srba", "vrbo"):
            settings["period_frac"] = 0.5
        moves = {"steps": args.steps, "eval_freq": args.iterations // (args.steps or 1)}
        pair = (
            theirs(benchmark, NAMES[method]).get_instance(**settings),
            ours("bilevel_single_loop").get_instance(method=method, **settings | moves),
        )
        for solver in pair:
            solver.set_objective(**given)
        turns = [[iteration(s, args.iterations) for s in pair] for _ in range(args.turns)]
        its, mine = (1e6 * min(times) for times in zip(*turns, strict=True))
        ratio = statistics.median(mine / its for its, mine in turns)
        print(
            f"{method}: at best {its:.1f} us, ours {mine:.1f} us ({mine / its:.2f}); "
            f"median of the turns' ratios {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
