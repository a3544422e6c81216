"""Calls of value and hypergradient: Auto without any setting, and Adam over a grid of step sizes.

python -m benchmarks.outer [--cases lasso ijcnn1 distillation ...] [--rule Auto]

Of all Adams the best is taken anew for every target: the fewest calls to the bar of the case, and
the lowest value after a quarter of the calls, and after all of them.
"""

import argparse
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import bilevel as bl
from benchmarks.outer_cases import CASES, Case

STEP_SIZES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)


def values(case: Case, outer: Any, calls: int, tol: float | str | None = "auto") -> np.ndarray:
    """The lowest outer value after 1, 2, ... calls; infinite where nothing was evaluated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bl.DivergenceWarning)
        result = bl.tune(
            case.problem,
            case.estimator,
            outer,
            case.hyper,
            case.params,
            case.data,
            steps=calls,
            key=jax.random.key(0),
            tol=tol,
            hooks=[bl.Blocks(calls)],
        )
    seen = np.full(calls, np.inf)
    rows = np.asarray(result.history["value"])
    seen[: len(rows)] = np.where(np.isfinite(rows), rows, np.inf)
    return np.minimum.accumulate(seen)


def needed(seen: np.ndarray, target: float) -> int | None:
    """Calls until the target is reached; None if it is not."""
    return int(np.argmax(seen <= target)) + 1 if seen[-1] <= target else None


class Target(NamedTuple):
    """A value to reach: the best Adam's step size and calls, the rule's; None where it does not."""

    label: str
    value: float
    size: float | None
    adam: int | None
    rule: int | None

    @property
    def ratio(self) -> float:
        """The rule's calls over Adam's; infinite where only Adam arrives, 0 where only the rule."""
        if self.rule is None:
            return np.inf if self.adam else np.nan
        return self.rule / self.adam if self.adam else 0.0


class Race(NamedTuple):
    """The rule's `seen`, as `values` gives it, in twice Adam's calls, and the targets."""

    seen: np.ndarray
    targets: list[Target]


def race(case: Case, rule: str = "Auto") -> Race:
    """A rule without setting, and for each target the Adam that arrives first."""
    adam = {
        size: values(case, bl.transform(optax.adam, learning_rate=size), case.budget)
        for size in STEP_SIZES
    }
    ours = values(case, getattr(bl.outer, rule)(), 2 * case.budget)
    targets = [] if case.bar is None else [("bar", case.bar)]
    targets += [
        (f"Adam's best at {calls}", min(seen[calls - 1] for seen in adam.values()))
        for calls in (case.budget // 4, case.budget)
    ]
    met = []
    for label, target in targets:
        reached = {size: n for size, seen in adam.items() if (n := needed(seen, target))}
        size = min(reached, key=lambda size: reached[size], default=None)
        theirs = None if size is None else reached[size]
        met.append(Target(label, target, size, theirs, needed(ours, target)))
    return Race(ours, met)


def rows(name: str, case: Case, rule: str) -> list[str]:
    """The table's rows of one case."""
    seen, targets = race(case, rule)
    return [
        f"| {name} | {t.label} | {t.value:.6g} | {t.size or '-'} | {t.adam or '-'} | "
        f"{t.rule or f'not in {len(seen)}'} | {f'{t.ratio:.2f}' if t.adam and t.rule else '-'} |"
        for t in targets
    ]


def main() -> None:
    """Print the table of `docs/outer.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rule", default="Auto")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"| case | target | value | best Adam step | its calls | {args.rule}'s calls | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name in args.cases:
        try:
            case = CASES[name]()
        except FileNotFoundError as error:
            print(f"| {name} | skipped: {error} | | | | | |")
            continue
        for line in rows(name, case, args.rule):
            print(line, flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
