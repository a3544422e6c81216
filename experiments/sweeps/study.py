"""The study of a search: Optuna's journal in its folder, which several processes share."""

import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.common.errors import BadInputError
from experiments.common.files import set_aside

PLACE = "trials.journal"
LOCK = ".lock"
REFINED = "refined"
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
_PAUSE = 0.3  # seconds between two looks at trials that other processes make


class Study:
    """Optuna's study, kept in the folder as a journal of which every line is written once.

    A trial belongs to the process that holds its lock, which the kernel releases when the process
    dies: a trial without an end that nobody holds is taken up again.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        fixed: list[str],
        space: dict[str, Any],
        *,
        scout: int | None = None,
        pruner: str = "none",
    ) -> None:
        import optuna  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.states = optuna, optuna.trial.TrialState
        self.folder, self.seed, self.space = folder, seed, space
        self.pruner = make_pruner(pruner)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / LOCK)
        written = {name: optuna.distributions.distribution_to_json(d) for name, d in space.items()}
        about = {"seed": seed, "fixed": fixed, "space": written, "scout": scout, "pruner": pruner}
        with self.lock:
            self.study = self._opened(folder / PLACE)
            before = {"pruner": "none"} | self.study.user_attrs.get("about", about)
            if before != about:
                raise BadInputError(
                    f"{folder} holds another search: {before}. Choose another folder."
                )
            self.study.set_user_attr("about", about)

    def trials(self, most: int) -> Iterator[Any]:
        """Yield trials to be made until `most` are told, each to one process at a time.

        Waits for what other processes make: should one of them die, its trial is taken up here.
        """

        def find() -> list[Any]:
            running = []
            for trial in self.study.get_trials(deepcopy=False, states=(self.states.RUNNING,)):
                if trial.params.keys() == self.space.keys():
                    running.append(trial)
                else:
                    self.tell(trial.number, None)  # killed while it was drawn
            return [*running, None] if len(self.drawn) < most else running

        return self._each(find)

    def best_ones(self, most: int) -> Iterator[Any]:
        """Yield those of the `most` best trials that have not gone on to all their steps."""
        return self._each(lambda: [t for t in self.best(most) if str(t.number) not in self.refined])

    def _each(self, find: Callable[[], list[Any]]) -> Iterator[Any]:
        """Yield what is found and held by nobody else, until nothing is; `None` is a new trial."""
        waits = False
        while True:
            with self.lock:  # a holder tells within it: what has no end here is held, or free
                found = find()
                free = self._first_free(found)
            if free is not None:
                trial, claim = free
                try:
                    yield trial
                finally:
                    claim.release()
            elif not found:
                return
            else:
                if not waits:
                    print(f"waiting for {len(found)} that other processes make", flush=True)
                waits = True
                time.sleep(_PAUSE)

    def _first_free(self, found: Iterable[Any]) -> tuple[Any, FileLock] | None:
        for known in found:
            trial = self._draw() if known is None else known
            place = self.folder / ".claims" / f"{trial.number:04d}"
            place.parent.mkdir(exist_ok=True)
            claim = FileLock(place)
            try:
                claim.acquire(timeout=0)
            except Timeout:
                continue
            return trial, claim
        return None

    def _draw(self) -> Any:
        # A sampler per draw: it follows from the seed, its number and the trials before.
        seed = 1_000_003 * self.seed + len(self.drawn)
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        return self.study.ask(self.space)

    @property
    def drawn(self) -> list[Any]:
        """The trials so far of which all settings are known."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.keys() == self.space.keys()]

    def judge(self, number: int) -> Callable[[int, float], bool]:
        """Return what reports the steps of a trial to the pruner, and asks whether to end it."""
        storage = self.study._storage
        study = storage.get_study_id_from_name(self.study.study_name)
        place = storage.get_trial_id_from_study_id_trial_number(study, number)

        def end(step: int, value: float) -> bool:
            storage.set_trial_intermediate_value(place, step, value)
            return self.pruner.prune(self.study, storage.get_trial(place))

        return end

    def tell(self, number: int, value: float | None, state: Any = None) -> None:
        """Write down what a trial gave; without a value it has failed, unless `state` says else."""
        with self.lock:
            ended = self.states.FAIL if value is None else self.states.COMPLETE
            self.study.tell(number, value, state or ended)

    def best(self, most: int | None = None) -> list[Any]:
        """Return up to so many of the completed trials, the smallest value first."""
        trials = self.study.get_trials(deepcopy=False, states=(self.states.COMPLETE,))
        return sorted(trials, key=lambda trial: trial.value)[:most]

    def refine(self, number: int, value: float | None) -> None:
        """Write down what a trial gave with all its steps; Optuna is told of the first ones."""
        with self.lock:
            self.study.set_user_attr(REFINED, {**self.refined, str(number): value})

    @property
    def refined(self) -> dict[str, float | None]:
        """The values with all steps, by the numbers of their trials."""
        return self.study.user_attrs.get(REFINED, {})

    def _opened(self, path: Path) -> Any:
        """Return the study in the journal; a damaged one is set aside, its runs are found again."""
        try:
            return self._study(path)
        except (ValueError, KeyError):
            set_aside(path, f"{path}: these are no trials.")
            return self._study(path)

    def _study(self, path: Path) -> Any:
        from optuna.storages import journal

        _cut(path)
        lock: Any = _JournalLock(self.lock, path)
        storage = self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(path), lock))
        return self.optuna.create_study(
            storage=storage, study_name="search", load_if_exists=True, pruner=self.pruner
        )


class _JournalLock:
    """What Optuna holds while it writes: the folder's lock, which no dead process holds."""

    def __init__(self, lock: FileLock, path: Path) -> None:
        self.lock, self.path = lock, path

    def acquire(self) -> bool:
        self.lock.acquire()
        _cut(self.path)
        return True

    def release(self) -> None:
        self.lock.release()


def make_pruner(text: str) -> Any:
    """Return Optuna's pruner of `NAME` or `NAME,SETTING=VALUE,...`, by Optuna's names.

    Raises
    ------
    BadInputError : there is no such pruner, or it has no such setting or value.
    """
    import optuna  # pyright: ignore[reportMissingImports]

    name, *given = text.split(",")
    if name not in PRUNERS:
        raise BadInputError(f"--pruner: expected one of {', '.join(PRUNERS)}, got {name!r}")
    kind = getattr(optuna.pruners, PRUNERS[name])
    pairs = [setting.partition("=") for setting in given]
    try:
        return kind(**{key: _number(value) for key, _, value in pairs})
    except (TypeError, ValueError) as error:
        known = ", ".join(inspect.signature(kind).parameters)
        raise BadInputError(f"--pruner {text}: {error}. {name} has: {known or 'none'}.") from error


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text  # `auto`


def _cut(path: Path) -> None:
    """Drop the half of a line that a killed process has left: the next would be appended to it."""
    if not path.is_file() or not (size := path.stat().st_size):
        return
    with path.open("rb") as file:
        file.seek(size - 1)
        whole = file.read() == b"\n"
    if not whole:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
