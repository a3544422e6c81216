"""The command `python -m experiments.search`: Optuna chooses what no gradient reaches.

A trial is a run: Optuna draws its start, its nouns and their settings, the hypergradient then
descends from there, and the final outer value is what Optuna minimises. Values to search are
written as Hydra writes sweeps: `task.start=tag(log,interval(1e-4,10))`, `solver=choice(sgd,adam)`,
`estimator.steps=range(100,500,100)`; all else is passed on to every run.

With `--refine K` it is a hybrid: a trial takes `--scout` outer steps only, and the K best of them
then go on to all of `steps=`.

A trial that ends `unreliable`, its hypergradient known to be wrong, counts as failed: it is never
the best, and Optuna learns nothing from its value.

The n-th draw follows from `--seed`, n and the trials before it. So a search that was killed and is
started again goes on as if it had not stopped: from Optuna's journal, trials.journal, and the
checkpoint of its last run.

Exit status: 0, 1 for bad input or where no trial completed, 3 where another process is at work in
the folder, 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from experiments import run
from experiments.cli.hydra_compat import folder_name
from experiments.common.errors import BadInputError
from experiments.common.files import set_aside
from experiments.common.pipes import piped
from experiments.storage.lock import BusyError, held
from experiments.storage.result_file import RESULT, read_result
from experiments.sweeps.search_space import sweeps

PLACE = "trials.journal"
REFINED = "refined"


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

    def make(number: int, params: dict[str, Any], what: str, extra: list[str]) -> float | None:
        """Make the run of a trial, or go on with it; returns its value.

        Raises
        ------
        KeyboardInterrupt : the run was interrupted.
        """
        changed = changes_of(params)
        folder = given.folder / folder_name(f"{number:04d},{','.join(changed)}")
        print(f"{what}: {' '.join(changed)}", flush=True)
        status = _run([*flags, *fixed, *changed, *extra, f"hydra.run.dir={folder}"])
        if status == run.INTERRUPTED:
            raise KeyboardInterrupt
        return _value(folder)

    try:
        while (asked := search.ask(given.trials)) is not None:
            number, params = asked
            search.tell(number, make(number, params, f"trial {number}", short))
        for trial in search.best(given.refine):
            search.refine(trial.number, make(trial.number, trial.params, "going on", []))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return run.INTERRUPTED
    return search.conclude()


def _value(folder: Path) -> float | None:
    """The final outer value of a run; none where it did not complete, or is unreliable."""
    result = read_result(folder / RESULT) if (folder / RESULT).is_file() else {}
    return result["value"] if result.get("status") == "completed" else None


def _unreliable(folder: Path) -> int:
    """How many runs of a search have all their steps and a hypergradient known to be wrong."""
    results = [read_result(path) for path in folder.glob(f"*/{RESULT}")]
    return sum(result["status"] == "unreliable" for result in results)


def _run(arguments: list[str]) -> int:
    """In this process, so that what is compiled is shared."""
    before, sys.argv = sys.argv, ["run", *arguments]
    try:
        return run.main()
    finally:
        sys.argv = before


class Search:
    """Optuna's study, kept in the folder as a journal of which every line is written once.

    A trial that was asked for and has no end yet is the one at which the search was killed.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        fixed: list[str],
        space: dict[str, Any],
        scout: int | None,
    ) -> None:
        import optuna  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna
        self.folder, self.seed, self.fixed, self.space = folder, seed, fixed, space
        self.study = self._opened(folder / PLACE)
        written = {name: optuna.distributions.distribution_to_json(d) for name, d in space.items()}
        about = {"seed": seed, "fixed": fixed, "space": written, "scout": scout}
        before = self.study.user_attrs.get("about", about)
        if before != about:
            raise BadInputError(f"{folder} holds another search: {before}. Choose another folder.")
        self.study.set_user_attr("about", about)

    def ask(self, most: int) -> tuple[int, dict[str, Any]] | None:
        """Return number and settings of the next of `most` trials; none where all are told."""
        running = self.optuna.trial.TrialState.RUNNING
        for trial in self.study.get_trials(deepcopy=False, states=(running,)):
            if trial.params.keys() == self.space.keys():
                return trial.number, trial.params
            self.tell(trial.number, None)  # killed before all settings were written: drawn again
        drawn = len(self.drawn)
        if drawn >= most:
            return None
        # A sampler per draw: the draw follows from the seed, its number and the trials before.
        self.study.sampler = self.optuna.samplers.TPESampler(seed=1_000_003 * self.seed + drawn)
        trial = self.study.ask(self.space)
        return trial.number, trial.params

    @property
    def drawn(self) -> list[Any]:
        """The trials so far of which all settings are known."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self.space.keys()]

    def tell(self, number: int, value: float | None) -> None:
        """Write down what a trial gave; no value where it did not complete."""
        states = self.optuna.trial.TrialState
        self.study.tell(number, value, states.FAIL if value is None else states.COMPLETE)

    def best(self, most: int | None = None) -> list[Any]:
        """Return up to so many of the completed trials, the smallest value first."""
        completed = self.optuna.trial.TrialState.COMPLETE
        trials = self.study.get_trials(deepcopy=False, states=(completed,))
        return sorted(trials, key=lambda trial: trial.value)[:most]

    def refine(self, number: int, value: float | None) -> None:
        """Write down what a trial gave with all its steps; Optuna is told of the first ones."""
        self.study.set_user_attr(REFINED, {**self.refined, str(number): value})

    @property
    def refined(self) -> dict[str, float | None]:
        """The values with all steps, by the numbers of their trials."""
        return self.study.user_attrs.get(REFINED, {})

    def conclude(self) -> int:
        """Say which was best; returns the exit status."""
        completed = self.best()
        if not completed:
            found = _unreliable(self.folder)
            why = f": {found} ended unreliable, with a wrong hypergradient" if found else ""
            print(f"error: no trial completed{why}", file=sys.stderr)
            return run.BAD_INPUT
        values = {trial.number: trial.value for trial in completed}
        gone_on = {int(n): value for n, value in self.refined.items() if value is not None}
        number, value = min((gone_on or values).items(), key=lambda item: item[1])
        best = next(trial for trial in completed if trial.number == number)
        count = f"{len(completed)} completed"
        if found := _unreliable(self.folder):
            count += f", {found} unreliable"
        print(f"\nbest of {len(self.drawn)} trials ({count}): {value}")
        print(f"python -m experiments.run {' '.join([*self.fixed, *changes_of(best.params)])}")
        print(f"python -m experiments.report {self.folder}   for all of them")
        return run.OK

    def _opened(self, path: Path) -> Any:
        """Return the study in the journal; a damaged one is set aside, its runs are found again."""
        _cut(path)
        try:
            return self._study(path)
        except (ValueError, KeyError):
            set_aside(path, f"{path}: these are no trials.")
            return self._study(path)

    def _study(self, path: Path) -> Any:
        from optuna.storages import journal

        storage = self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
        return self.optuna.create_study(storage=storage, study_name="search", load_if_exists=True)


def changes_of(params: dict[str, Any]) -> list[str]:
    """Return settings as the command line takes them."""
    return [f"{name}={value}" for name, value in params.items()]


def _cut(path: Path) -> None:
    """Drop the half of a line that a killed process has left: the next would be appended to it."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


if __name__ == "__main__":
    sys.exit(piped(main))
