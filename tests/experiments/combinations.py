"""Random combinations of the nouns: each runs, or is refused with a sentence.

`python -m tests.experiments.combinations 300 [FIRST]` makes them one after the other at the
defaults and prints a line for each and a count; what must not happen is marked with `!`.
"""

import contextlib
import io
import json
import math
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments import run as command_line
from experiments.cli.listing import CONF

# Tasks whose data are bundled, and small.
TASKS = ("ridge", "ridge_groups", "ridge_holdout", "logistic", "lasso", "lasso_elastic", "kernel")
TASKS += ("custom", "multinomial", "schedule_quadratic", "meta", "decays", "cleaning", "imbalance")
TASKS += ("equilibrium",)
GROUPS = ("solver", "estimator", "outer")
QUICK = ("steps=2", "baselines=false", "plot=false", "progress=off", "hydra/hydra_logging=none")
# What an exception looks like that nobody has put into words.
_BARE = re.compile(r"^(error: )?[A-Z]\w*(Error|Exception|Warning)\b")


class Outcome(NamedTuple):
    """What became of a combination: `completed`, `refused`, ... and what is wrong with that."""

    asked: tuple[str, ...]
    status: str
    wrong: str | None
    said: str


def draw(count: int, first: int = 0, tasks: tuple[str, ...] = TASKS) -> Iterator[tuple[str, ...]]:
    """Yield combinations; the n-th follows from n alone."""
    leaves = {group: sorted(path.stem for path in CONF.glob(f"{group}/*.yaml")) for group in GROUPS}
    for number in range(first, first + count):
        rng = random.Random(number)
        chosen = {"task": rng.choice(tasks)}
        chosen |= {group: rng.choice(names) for group, names in leaves.items()}
        yield tuple(f"{group}={name}" for group, name in chosen.items())


def attempt(asked: tuple[str, ...], folder: Path, *further: str) -> Outcome:
    """Run a combination in this process, and judge how it ended."""
    out, before = io.StringIO(), sys.argv
    sys.argv = ["run", *further, *asked, *QUICK, f"hydra.run.dir={folder}"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = command_line.main()
    except Exception as error:  # nothing may come through
        return Outcome(asked, "trace", f"{type(error).__name__}: {error}", out.getvalue())
    finally:
        sys.argv = before
    return judge(asked, code, out.getvalue(), folder)


def judge(asked: tuple[str, ...], code: int, said: str, folder: Path) -> Outcome:
    """Say what is wrong with an outcome, if anything is."""
    path = folder / "result.json"
    result: dict[str, Any] = {"status": "refused"}
    if path.is_file():
        result = json.loads(path.read_text())
    status, error = result["status"], result.get("error", "")
    expected = {"completed": 0, "failed": 1, "refused": 1, "diverged": 2, "unreliable": 4}
    wrong = None
    if expected.get(status) != code:
        wrong = f"status {status} with exit {code}"
    elif "Traceback" in said:
        wrong = "a trace is printed"
    elif _BARE.match(error):
        wrong = f"an exception in place of a sentence: {error[:200]}"
    elif status in ("completed", "unreliable"):
        numbers = [result["value"], *result["test_metrics"].values()]
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            wrong = f"numbers that are none: {numbers}"
    elif status == "failed":
        status, said = "refused", error
    return Outcome(asked, status, wrong, result.get("message") or said)


def main() -> int:
    """Make the combinations of the command line; returns how many ended as none may."""
    count, first = (*map(int, sys.argv[1:]), 0, 0)[:2]
    totals: Counter[str] = Counter()
    bad = 0
    for number, asked in enumerate(draw(count, first), first):
        with tempfile.TemporaryDirectory() as folder:
            found = attempt(asked, Path(folder) / "run")
        totals[found.status] += 1
        bad += found.wrong is not None
        mark, text = ("!", found.wrong) if found.wrong else (" ", found.said.strip()[-160:])
        note = text if found.wrong or found.status not in ("completed",) else ""
        line = f"{mark} {number} {' '.join(asked)}: {found.status} {' '.join(str(note).split())}"
        print(line, flush=True)
    print(dict(totals), f"{bad} not as they should be")
    return bad


if __name__ == "__main__":
    sys.exit(main())
