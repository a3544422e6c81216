"""How much longer a fit takes while another process holds a core: seconds of the wall clock.

python -m benchmarks.beside [--repeats 5] [--rows 400] [--columns 200]

Threads of a BLAS that spin while they wait for each other are slowed down much more than their
share when one of them has no core; a fit should be at most about three times slower.
"""

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)

FITS: dict[str, Callable[[], Any]] = {
    "HypergradRidge()": HypergradRidge,
    'HypergradRidge("per_feature")': lambda: HypergradRidge("per_feature"),
    "HypergradLasso()": HypergradLasso,
    "HypergradElasticNet()": HypergradElasticNet,
    "HypergradLogisticRegression()": HypergradLogisticRegression,
}


def hold_a_core() -> None:
    """Compute for ever."""
    while True:
        sum(i * i for i in range(10_000))


def best(make: Callable[[], Any], X: np.ndarray, y: np.ndarray, repeats: int) -> float:
    """Seconds of the wall clock, the best of some warm fits."""
    make().fit(X, y)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        make().fit(X, y)
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    """Print one row per estimator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--columns", type=int, default=200)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((args.rows, args.columns))
    target = X @ (rng.standard_normal(args.columns) * (rng.random(args.columns) < 0.1))
    target += rng.standard_normal(args.rows)
    print("| fit | alone, s | beside a process that holds a core, s | ratio |")
    print("|---|---:|---:|---:|")
    for name, make in FITS.items():
        y = target > 0 if "Logistic" in name else target
        alone = best(make, X, y, args.repeats)
        other = multiprocessing.get_context("spawn").Process(target=hold_a_core, daemon=True)
        other.start()
        time.sleep(1.0)  # until it computes
        beside = best(make, X, y, args.repeats)
        other.terminate()
        other.join()
        print(f"| `{name}` | {alone:.3f} | {beside:.3f} | {beside / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
