"""The command `python -m experiments.search`: Optuna chooses what no gradient reaches.

A trial is a run: Optuna draws its start, its nouns and their settings, the hypergradient then
descends from there, and the final outer value is what Optuna minimises. Values to search are
written as Hydra writes sweeps: `task.start=tag(log,interval(1e-4,10))`, `solver=choice(sgd,adam)`,
`estimator.steps=range(100,500,100)`; all else is passed on to every run.

With `--refine K` it is a hybrid: a trial takes `--scout` outer steps only, and the K best of them
then go on to all of `steps=`.

A trial that ends `unreliable`, its hypergradient known to be wrong, counts as failed: it is never
the best, and Optuna learns nothing from its value.

With `--pruner median` (or `hyperband`, ...; `median,n_startup_trials=3` sets what it has) Optuna is
told the outer value at every checkpoint, `every=` steps apart, and a trial that it gives up ends
`pruned`: neither best nor failed.

The same command given in several shells, or `--workers N`, shares one study: each process takes
the next trial as soon as it is free. The n-th draw follows from `--seed`, n and the trials that
have ended before it. So a search that was killed and is started again goes on as if it had not
stopped: from Optuna's journal, trials.journal, and the checkpoints of its runs. A trial whose
process has died is taken up by the others.

Exit status: 0, 1 for bad input or where no trial completed, 3 where another command is at work on
the run of a trial, 130 interrupted.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from experiments import run
from experiments.cli.hydra_compat import folder_name
from experiments.common.errors import BadInputError
from experiments.common.pipes import piped
from experiments.runs.pruning import judged_by
from experiments.runs.workers import POOLS, cores
from experiments.storage.lock import BusyError
from experiments.storage.result_file import PRUNED, RESULT, read_result
from experiments.sweeps.search_space import sweeps
from experiments.sweeps.study import PRUNERS, Study

UNRELIABLE = "unreliable"


def main(arguments: list[str] | None = None) -> int:
    """Search, and print the best trial with the command that repeats it."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.search",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=20, help="in all; more of them go on")
    parser.add_argument("--folder", type=Path, required=True, help="of the search; one per trial")
    parser.add_argument("--seed", type=int, default=0, help="of Optuna's draws")
    parser.add_argument("--refine", type=int, default=0, help="so many of the best trials go on")
    parser.add_argument("--scout", type=int, default=5, help="outer steps of a trial before that")
    parser.add_argument("--pruner", default="none", help=f"of {', '.join(PRUNERS)}, by Optuna")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the trials")
    parser.add_argument("--config-dir", type=Path, help="with leaves of your own")
    arguments = sys.argv[1:] if arguments is None else arguments
    given, changes = parser.parse_known_args(arguments)
    try:
        if given.workers > 1:
            return _start_workers(given.workers, arguments)
        return _search(given, changes)
    except BusyError as error:
        print(f"left alone: {error}", file=sys.stderr)
        return run.BUSY
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return run.BAD_INPUT


def _search(given: argparse.Namespace, changes: list[str]) -> int:
    fixed, space = sweeps(changes)
    if not space:
        raise BadInputError("There is nothing to search: give NAME=interval(LOW,HIGH) or the like.")
    scout = given.scout if given.refine else None
    study = Study(given.folder, given.seed, fixed, space, scout=scout, pruner=given.pruner)
    short = [] if scout is None else [f"steps={scout}"]
    flags = ["--config-dir", str(given.config_dir)] if given.config_dir else []

    def make(trial: Any, what: str, extra: list[str]) -> dict[str, Any]:
        """Make the run of a trial, or go on with it; returns its result, none where it has none.

        Raises
        ------
        KeyboardInterrupt : the run was interrupted.
        BusyError : somebody makes it by other means.
        """
        changed = changes_of(trial.params)
        folder = given.folder / folder_name(f"{trial.number:04d},{','.join(changed)}")
        print(f"{what}: {' '.join(changed)}", flush=True)
        if _result(folder).get("status") != PRUNED:  # else killed before it was told
            status = _run([*flags, *fixed, *changed, *extra, f"hydra.run.dir={folder}"])
            if status == run.INTERRUPTED:
                raise KeyboardInterrupt
            if status == run.BUSY:
                raise BusyError(str(folder))
        return _result(folder)

    try:
        for trial in study.trials(given.trials):
            with judged_by(study.judge(trial.number)):
                result = make(trial, f"trial {trial.number}", short)
            state = study.states.PRUNED if result.get("status") == PRUNED else None
            study.tell(trial.number, _value(result), state)
        for trial in study.best_ones(given.refine):
            study.refine(trial.number, _value(make(trial, "going on", [])))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return run.INTERRUPTED
    return _conclude(study, fixed)


def _result(folder: Path) -> dict[str, Any]:
    return read_result(folder / RESULT) if (folder / RESULT).is_file() else {}


def _value(result: dict[str, Any]) -> float | None:
    """The final outer value of a run; none where it did not complete, or is unreliable."""
    return result["value"] if result.get("status") == "completed" else None


def _run(arguments: list[str]) -> int:
    """In this process, so that what is compiled is shared."""
    before, sys.argv = sys.argv, ["run", *arguments]
    try:
        return run.main()
    finally:
        sys.argv = before


def _conclude(study: Study, fixed: list[str]) -> int:
    """Say which trial was best; returns the exit status."""
    found = Counter(read_result(path)["status"] for path in study.folder.glob(f"*/{RESULT}"))
    completed = study.best()
    if not completed:
        why = [f"{found[UNRELIABLE]} ended unreliable, with a wrong hypergradient"]
        text = ": ".join(["no trial completed", *(why if found[UNRELIABLE] else [])])
        print(f"error: {text}", file=sys.stderr)
        return run.BAD_INPUT
    values = {trial.number: trial.value for trial in completed}
    gone_on = {int(n): value for n, value in study.refined.items() if value is not None}
    number, value = min((gone_on or values).items(), key=lambda item: item[1])
    best = next(trial for trial in completed if trial.number == number)
    others = [f"{found[name]} {name}" for name in (PRUNED, UNRELIABLE) if found[name]]
    count = ", ".join([f"{len(completed)} completed", *others])
    print(f"\nbest of {len(study.drawn)} trials ({count}): {value}")
    print(f"python -m experiments.run {' '.join([*fixed, *changes_of(best.params)])}")
    print(f"python -m experiments.report {study.folder}   for all of them")
    return run.OK


def _start_workers(count: int, arguments: list[str]) -> int:
    """Make the search in so many processes; returns the exit status of one that did not end well.

    Each is the command as it was given, on its share of the cores: the last `--workers` counts.
    A signal reaches this process alone, and each of them once through it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    share = str(max(1, cores() // count))
    environment = dict.fromkeys(POOLS, share) | os.environ
    line = [sys.executable, "-m", "experiments.search", *arguments, "--workers", "1"]
    started = [
        subprocess.Popen(line, env=environment, start_new_session=True) for _ in range(count)
    ]
    try:
        statuses = [process.wait() for process in started]
    except KeyboardInterrupt:
        for process in started:
            process.send_signal(signal.SIGINT)
        statuses = [process.wait() for process in started]
    return next((status for status in statuses if status), run.OK)


def changes_of(params: dict[str, Any]) -> list[str]:
    """Return settings as the command line takes them."""
    return [f"{name}={value}" for name, value in params.items()]


if __name__ == "__main__":
    sys.exit(piped(main))
