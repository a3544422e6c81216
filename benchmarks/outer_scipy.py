"""Calls of value and hypergradient: Auto without any setting, and SciPy's L-BFGS-B.

python -m benchmarks.outer_scipy [--cases lasso ijcnn1 distillation ...]

Two targets a case: the lowest value that L-BFGS-B has after a quarter of its calls, and after all
of them, or where it stops by itself. Both count every call, those of rejected trials included.
"""

import argparse
import warnings
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import bilevel as bl
from benchmarks.outer import needed, values
from benchmarks.outer_cases import CASES, Case


def scipy_values(case: Case) -> np.ndarray:
    """The lowest outer value after 1, 2, ... calls of L-BFGS-B, at most the case's budget."""
    flat, unravel = ravel_pytree(case.hyper)
    seen: list[float] = []
    state: Any = None

    def call(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal state
        if len(seen) == case.budget:
            raise StopIteration
        estimate, after = bl.hypergradient(
            case.problem,
            case.estimator,
            unravel(jnp.asarray(x, flat.dtype)),
            case.params,
            case.data,
            jax.random.key(0),
            state=state,
            max_error=np.inf,
        )
        value = float(estimate.value)
        grad = np.asarray(ravel_pytree(estimate.grad)[0], float)
        if not np.isfinite(value) or not np.all(np.isfinite(grad)):
            seen.append(np.inf)
            return 1e10, np.zeros_like(grad)
        state = after
        seen.append(value)
        return value, grad

    options = {"maxfun": case.budget, "maxiter": case.budget, "ftol": 0, "gtol": 1e-12}
    with suppress(StopIteration):  # in the middle of a line search
        minimize(call, np.asarray(flat, float), jac=True, method="L-BFGS-B", options=options)
    return np.minimum.accumulate(seen)


def main() -> None:
    """Print the table of `docs/outer.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print("| case | L-BFGS-B's lowest after | value | Auto's calls | ratio |")
    print("|---|---:|---:|---:|---:|")
    for name in args.cases:
        case = CASES[name]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = scipy_values(case)
            ours = values(case, bl.outer.Auto(), 2 * case.budget, tol=None)
        for calls in (max(1, len(theirs) // 4), len(theirs)):
            target = float(theirs[calls - 1])
            first = needed(theirs, target) or calls
            mine = needed(ours, target)
            ratio = f"{mine / first:.2f}" if mine else "-"
            print(f"| {name} | {first} | {target:.6g} | {mine or 'none'} | {ratio} |", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
