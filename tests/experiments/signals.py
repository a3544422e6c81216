"""A small run, ended by signals at random moments: it is resumable each time, and ends bit for bit.

`python -m tests.experiments.signals [--signals 30] [--kills 100] [--minutes 8] [--seed 0]` gives
the command of one run again and again. Each process is sent SIGINT or SIGTERM (`--signals` times)
or SIGKILL (`--kills` times) at a random moment: one of three while it starts, the others up to a
tenth of a second after one of the files that it writes, of which there is one in a step. SIGINT
and SIGTERM must end it with exit status 130. When a process comes to the end of its run, that must
be what an uninterrupted one left, but for the clocks; the next ones begin anew in another folder.
It ends early after so many minutes, prints how many signals met a run that went on (`ended`), one
that was not begun (`early`) or was done (`late`, not counted), and exits with 1 if anything was
not as it should be.
"""

import argparse
import contextlib
import io
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.experiments.test_kills import Sweep, assert_same

SMALL = ["task=ridge", "task.table.degree=1", "estimator.steps=100", "steps=60", "every=1"]
AT_START = 1 / 3  # share of the signals
SMALL += ["tol=null", "plot=false", "baselines=false", "progress=off"]


class Runs(Sweep):
    """One run, by processes that may be ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cache = folder.parent / "cache"
        self.line = [sys.executable, "-m", "experiments.run", *SMALL]
        self.line += [f"hydra.run.dir={folder / 'run'}", f"compile_cache={cache}"]

    def end_after(self, files: int, seconds: float, signum: int) -> tuple[int, str]:
        """Send the signal so long after so many files were written; a shell's status, and output.

        Where the process ends before that, nothing is sent.
        """
        seen = {self.newest()}
        with self.started() as process:
            while len(seen) <= files and process.poll() is None:
                time.sleep(0.002)
                seen.add(self.newest())
            time.sleep(seconds)
            process.send_signal(signum)
            out, _ = process.communicate(timeout=120)
        status = process.returncode
        return 128 - status if status < 0 else status, out

    def newest(self) -> int:
        """When the last checkpoint or result was put in place."""
        return max((date for _, date in self.written()), default=0)


def judge(runs: Runs, signum: int, status: int, out: str, before: int) -> tuple[str, str | None]:
    """Return `ended`, `early` (no run was begun) or `late` (it was done), and what is wrong."""
    path = runs.folder / "run" / "result.json"
    found = json.loads(path.read_text())["status"] if path.is_file() else None
    if found == "completed":  # while the summary is printed, or the interpreter ends
        known = status in (0, 130, 128 + signum)
        return "late", None if known else f"exit {status} after the run: {out[-600:]}"
    met = "early" if found is None else "ended"
    expected = 137 if signum == signal.SIGKILL else 130
    if status != expected:
        return met, f"exit {status} in place of {expected}: {out[-600:]}"
    if "Traceback" in out:
        return met, f"a trace: {out[-600:]}"
    if (steps := runs.steps()) < before:  # reads the checkpoint: it is whole
        return met, f"{before - steps} steps were lost"
    if signum != signal.SIGKILL and found not in (None, "interrupted", "running"):
        return met, f"status {found} after the signal"
    return met, None


def send(plan: list[int], folder: Path, until: float, seed: int) -> tuple[Counter[str], list[str]]:
    """Send the signals of the plan; returns how each was met, and what was wrong."""
    draws = random.Random(seed)
    totals: Counter[str] = Counter()
    wrong, todo = [], list(plan)
    whole = Runs(folder / "whole")
    whole.finish()
    begun = time.monotonic()
    Runs(folder / "timed").end_after(1, 0, signal.SIGKILL)  # all programs are in the cache
    start = time.monotonic() - begun
    runs = Runs(folder / "run-0")
    while todo and time.monotonic() < until:
        name = signal.Signals(todo[0]).name
        before = runs.steps()
        at_start = draws.random() < AT_START
        files = 0 if at_start else draws.randrange(1, 25)
        seconds = draws.uniform(0, start if at_start else 0.1)
        status, out = runs.end_after(files, seconds, todo[0])
        met, mistake = judge(runs, todo[0], status, out, before)
        totals[f"{name} {met}"] += 1
        if mistake:
            wrong.append(f"{name}: {mistake}")
        if met == "late":
            wrong += compare(whole, runs)
            totals["runs compared"] += 1
            runs = Runs(folder / f"run-{totals['runs compared']}")
        else:
            todo.pop(0)
    if todo or runs.runs():
        runs.finish()
        wrong += compare(whole, runs)
        totals["runs compared"] += 1
    return totals, wrong


def compare(whole: Runs, runs: Runs) -> list[str]:
    """Bit for bit, the table included; returns what differs."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            assert_same(whole, runs)
        except AssertionError as error:
            return [f"not as an uninterrupted run: {error}"]
    return []


def main() -> int:
    """Send the signals of the command line; print how many, and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=30)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plan = [signal.SIGINT, signal.SIGTERM] * (given.signals // 2) + [signal.SIGKILL] * given.kills
    random.Random(given.seed).shuffle(plan)
    until = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as name:
        totals, wrong = send(plan, Path(name), until, given.seed)
    for text in wrong:
        print(f"! {text}")
    print(", ".join(f"{name} {count}" for name, count in sorted(totals.items())))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
