"""The command `python -m experiments.search`: Optuna chooses what no gradient reaches.

A trial is a run: Optuna draws its start, its nouns and their settings, the hypergradient then
descends from there, and the final outer value is what Optuna minimises. Values to search are
written as Hydra writes sweeps: `task.start=tag(log,interval(1e-4,10))`, `solver=choice(sgd,adam)`,
`estimator.steps=range(100,500,100)`; all else is passed on to every run.

With `--refine K` it is a hybrid: a trial takes `--scout` outer steps only, and the K best of them
then go on to all of `steps=`.

The n-th draw follows from `--seed`, n and the trials before it. So a search that was killed and is
started again goes on as if it had not stopped: from trials.json and the checkpoint of its last run.

Exit status: 0, 1 for bad input or where no trial completed, 3 where another process is at work in
the folder, 130 interrupted.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from experiments import run
from experiments.cli.hydra_compat import folder_name
from experiments.common.errors import BadInputError
from experiments.common.files import set_aside, write_json
from experiments.storage.lock import BusyError, held
from experiments.storage.resume import RESULT, read_result
from experiments.sweeps.search_space import sweeps

PLACE = "trials.json"


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
    parser.add_argument("--config-dir", type=Path, help="with leaves of your own")
    given, changes = parser.parse_known_args(arguments)
    try:
        with held(given.folder):
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
    search = Search(given.folder, given.seed, fixed, space, scout)
    short = [] if scout is None else [f"steps={scout}"]
    flags = ["--config-dir", str(given.config_dir)] if given.config_dir else []
    while len(search.trials) < given.trials:
        number = len(search.trials)
        params = search.draw(number)
        changed = [f"{name}={value}" for name, value in params.items()]
        folder = given.folder / folder_name(f"{number:04d},{','.join(changed)}")
        print(f"trial {number}: {' '.join(changed)}", flush=True)
        status = _run([*flags, *fixed, *changed, *short, f"hydra.run.dir={folder}"])
        if status == run.INTERRUPTED:
            print("interrupted; the same command goes on")
            return status
        search.tell(params, _value(folder), folder)
    for trial in search.best(given.refine):
        changed = [f"{name}={value}" for name, value in trial["params"].items()]
        folder = given.folder / trial["folder"]
        print(f"going on: {' '.join(changed)}", flush=True)
        if _run([*flags, *fixed, *changed, f"hydra.run.dir={folder}"]) == run.INTERRUPTED:
            print("interrupted; the same command goes on")
            return run.INTERRUPTED
        search.refined(trial, _value(folder))
    return search.conclude()


def _value(folder: Path) -> float | None:
    """The final outer value of a run; none where it did not complete."""
    result = read_result(folder / RESULT) if (folder / RESULT).is_file() else {}
    return result["value"] if result.get("status") == "completed" else None


def _run(arguments: list[str]) -> int:
    """In this process, so that what is compiled is shared."""
    before, sys.argv = sys.argv, ["run", *arguments]
    try:
        return run.main()
    finally:
        sys.argv = before


class Search:
    """Trials so far, on disk, and Optuna's study made from them."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        fixed: list[str],
        space: dict[str, dict[str, Any]],
        scout: int | None,
    ) -> None:
        import optuna  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna
        self.path = folder / PLACE
        self.about: dict[str, Any] = {"seed": seed, "fixed": fixed, "space": space}
        if scout is not None:
            self.about["scout"] = scout
        self.space = {name: _distribution(entry) for name, entry in space.items()}
        self.trials = self._saved()

    def draw(self, number: int) -> dict[str, Any]:
        """The settings of trial `number`."""
        seed = 1_000_003 * self.about["seed"] + number
        study = self.optuna.create_study(sampler=self.optuna.samplers.TPESampler(seed=seed))
        study.add_trials([self._told(trial) for trial in self.trials])
        return study.ask(self.space).params

    def tell(self, params: dict[str, Any], value: float | None, folder: Path) -> None:
        """Write down what a trial gave; no value where it did not complete."""
        self.trials.append({"params": params, "value": value, "folder": folder.name})
        write_json(self.path, self.about | {"trials": self.trials})

    def best(self, most: int) -> list[dict[str, Any]]:
        """Up to so many of the completed trials, the smallest value first."""
        completed = [trial for trial in self.trials if trial["value"] is not None]
        return sorted(completed, key=lambda trial: trial["value"])[:most]

    def refined(self, trial: dict[str, Any], value: float | None) -> None:
        """Write down what a trial gave with all its steps; Optuna is told of the first ones."""
        trial["refined"] = value
        write_json(self.path, self.about | {"trials": self.trials})

    def conclude(self) -> int:
        """Say which was best; returns the exit status."""
        completed = self.best(len(self.trials))
        gone_on = [trial for trial in completed if trial.get("refined") is not None]
        if not completed:
            print("error: no trial completed", file=sys.stderr)
            return run.BAD_INPUT
        best, value = completed[0], completed[0]["value"]
        if gone_on:
            best = min(gone_on, key=lambda trial: trial["refined"])
            value = best["refined"]
        print(f"\nbest of {len(self.trials)} trials ({len(completed)} completed): {value}")
        changed = [f"{name}={value}" for name, value in best["params"].items()]
        print(f"python -m experiments.run {' '.join([*self.about['fixed'], *changed])}")
        print(f"python -m experiments.report {self.path.parent}   for all of them")
        return run.OK

    def _told(self, trial: dict[str, Any]) -> Any:
        """As Optuna keeps it."""
        states = self.optuna.trial.TrialState
        return self.optuna.trial.create_trial(
            params=trial["params"],
            distributions=self.space,
            value=trial["value"],
            state=states.FAIL if trial["value"] is None else states.COMPLETE,
        )

    def _saved(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            trials, about = saved["trials"], {name: saved[name] for name in self.about}
        except (ValueError, KeyError, TypeError):
            set_aside(self.path, f"{self.path}: these are no trials.")
            return []  # the runs are there still: each is found finished
        if about != json.loads(json.dumps(self.about)):
            raise BadInputError(
                f"{self.path.parent} holds another search: {about}. Choose another folder."
            )
        return trials


def _distribution(entry: dict[str, Any]) -> Any:
    """What Hydra's syntax has said, in Optuna's words."""
    from optuna import distributions as known  # pyright: ignore[reportMissingImports]

    if entry["kind"] == "choice":
        return known.CategoricalDistribution(entry["values"])
    kind = known.IntDistribution if entry["integer"] else known.FloatDistribution
    step = {} if entry["step"] is None else {"step": entry["step"]}
    return kind(entry["low"], entry["high"], log=entry["log"], **step)


if __name__ == "__main__":
    sys.exit(main())
