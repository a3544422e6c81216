"""The command `python -m experiments.run`: one run, or with `-m` one of each combination.

Exit status: 0 done, 1 bad input, 2 diverged, 3 another process is at work in the folder,
4 unreliable (the last hypergradient is known to be wrong by more than `max_error`),
130 interrupted (`resume=FOLDER` goes on).
JAX is imported by the run itself, so that `--cfg job`, `--help` and completion stay fast.
"""

import os
import signal
import sys

if __name__ == "__main__":
    # While the rest is imported nothing is written yet: end at once, and with the same status.
    for _signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_signum) is not signal.SIG_IGN:
            signal.signal(_signum, lambda *_: os._exit(130))
    # An interrupt that a callback of JAX's drops is remembered, and raised again: no trace of it.
    _report = sys.unraisablehook
    sys.unraisablehook = lambda u: None if u.exc_type is KeyboardInterrupt else _report(u)

import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli import completion, hydra_compat, listing
from experiments.cli.compatibility import refuse_mismatched, unused_solver
from experiments.cli.hydra_compat import Launch
from experiments.cli.settings import check, defaults
from experiments.cli.trust import refuse_untrusted
from experiments.common.errors import BadInputError, explain_os
from experiments.runs import workers
from experiments.runs.recording import RunError, SweepStopped, ended_at_once, recorded, stopping
from experiments.storage.lock import BusyError, held
from experiments.storage.result_file import RESULT
from experiments.storage.resume import finished, origin, repeat, saved_settings
from experiments.sweeps import ending, seed_jobs

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

# Here too, for the worker processes of launchers: they start with the function `task`.
hydra_compat.prepare_process()

OK, BAD_INPUT, DIVERGED, BUSY, UNRELIABLE, INTERRUPTED = 0, 1, 2, 3, 4, 130
ENDED_BADLY = {"diverged": DIVERGED, "unreliable": UNRELIABLE}


class EndedBadlyError(RunError):
    """The run ended with a result, of this status: `diverged` or `unreliable`."""


def main() -> int:
    """Do what the command line says; returns the exit status."""
    if threading.current_thread() is threading.main_thread():
        # A scheduler's SIGTERM leaves a resumable run, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # that of a shell's background
            signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = sys.argv[1:]
    try:
        for other in (listing, completion):
            if other.asked(arguments):
                print(other.answer(arguments))
                return OK
        try:
            hydra_compat.launch(task)
        finally:
            if text := ending.conclude():
                print(text)
    except KeyboardInterrupt:
        return INTERRUPTED
    except EndedBadlyError as error:
        return ENDED_BADLY[error.args[0]]  # the summary has said it
    except BusyError as error:
        print(f"left alone: {error}", file=sys.stderr)
        return BUSY
    except (RunError, BadInputError, SweepStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # --help | head
        from experiments.common.pipes import drop_output

        drop_output()
        return OK
    except OSError as error:
        print(f"error: {explain_os(error)}", file=sys.stderr)
        return BAD_INPUT
    except BrokenProcessPool:  # joblib's: a process that dies takes the others' jobs with it
        print(
            "error: a worker process died; was there memory enough? Give the command again with "
            "hydra.sweep.dir=FOLDER: it does only what is missing.",
            file=sys.stderr,
        )
        return BAD_INPUT
    return OK


def task(config: "DictConfig") -> float | None:
    """One job of Hydra's: returns the final outer value, which sweepers minimise.

    Raises
    ------
    RunError, EndedBadlyError : the run did not end well; `result.json` says so too.
    BusyError : another process makes this run.
    """
    from experiments.common.pipes import PipedConsole

    launch = Launch.current()
    console = PipedConsole(width=None if sys.stdout.isatty() else 100)
    facts = _origin(config, launch)
    many = seed_jobs.asked(config)
    if config["mesh"]["hosts"] and not _first(config, launch):
        return _follow(config, launch, facts)
    again = f"the same command and hydra.run.dir={launch.folder}" if many else ""
    stop = launch.sweep and not config["keep_going"]
    recording = recorded(launch.folder, facts, console, again, sweep=launch.sweep)
    with stopping(launch.folder, stop), held(launch.folder), recording:
        do = _many if many else _one
        result = do(config, launch, facts, console)
    if result["status"] in ENDED_BADLY:
        raise EndedBadlyError(result["status"], result["message"])
    return result["value"]


def _origin(config: "DictConfig", launch: Launch) -> dict[str, Any]:
    """What was asked for, and the command that does so again."""
    facts: dict[str, Any] = {"choices": launch.choices, "overrides": launch.overrides}
    if config["resume"] is not None:
        if not (begun := origin(Path(str(config["resume"])), launch.overrides)):
            return facts | {"command": None}
        facts |= begun
    return facts | {"command": repeat(facts["overrides"], launch.sources, sweep=launch.sweep)}


def _one(
    config: "DictConfig", launch: Launch, facts: dict[str, Any], console: "Console"
) -> dict[str, Any]:
    """The result of the job: what was there already, or that of the run made now."""
    folder = launch.folder
    settings = prepare(config, launch)
    console.print(f"run folder      {folder}", highlight=False, markup=False, soft_wrap=True)
    if said := unused_solver(settings, facts):
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        facts["choices"] = {g: name for g, name in facts["choices"].items() if g != "solver"}
    if result := finished(folder, settings):
        console.print(_already(result), highlight=False, markup=False)
        return result
    workers.limit(launch.launcher)
    program = getattr(sys.modules["__main__"], "__spec__", None)
    with ended_at_once(getattr(program, "name", None) == __name__, INTERRUPTED):
        from experiments.runs.session import perform

    return perform(settings, folder, facts, console)


def _many(
    config: "DictConfig", launch: Launch, facts: dict[str, Any], console: "Console"
) -> dict[str, Any]:
    """Status and mean value of all the runs that `vmap` asks for."""
    folder = launch.folder
    if config["resume"] is not None:
        prepare(config, launch)  # says what to do instead
    found = seed_jobs.lanes(config, launch)
    console.print(f"folder of runs  {folder}", highlight=False, markup=False, soft_wrap=True)
    workers.limit(launch.launcher)
    from experiments.report import main as report
    from experiments.reports.table import rows
    from experiments.runs.summary import show_many
    from experiments.sweeps.vmapped import perform

    results = perform(found, folder, facts, console)
    (folder / RESULT).unlink(missing_ok=True)  # of an earlier start that failed
    report([str(folder), "--no-page"])
    show_many(console, rows(results))
    outcome = ending.of_many(results)
    if outcome["message"]:
        console.print(outcome["message"], highlight=False, markup=False)
    return outcome


def _first(config: "DictConfig", launch: Launch) -> bool:
    """Join the other processes; whether this one writes the files."""
    prepare(config, launch)
    workers.limit(launch.launcher)
    from experiments.runs.mesh import join

    return join()


def _follow(config: "DictConfig", launch: Launch, facts: dict[str, Any]) -> float | None:
    """Take part in the run that the first process makes, and write nothing that stays."""
    import io
    import tempfile

    from rich.console import Console

    settings = prepare(config, launch) | {"baselines": False, "plot": False}
    if result := finished(launch.folder, settings):
        return result["value"]
    from experiments.runs.session import perform

    with tempfile.TemporaryDirectory() as into:
        quiet = Console(file=io.StringIO())
        return perform(settings, launch.folder, facts, quiet, Path(into))["value"]


def _already(result: dict[str, Any]) -> str:
    if result["status"] == "diverged":
        return f"diverged already, after {result['steps']} outer steps: {result['message']}"
    if result["status"] == "unreliable":
        return f"finished already, unreliable: {result['message']}"
    if result.get("stopped"):
        return f"finished already: {result['message']}"
    return f"finished already: {result['steps']} outer steps. A larger steps= goes on."


def prepare(config: "DictConfig", launch: Launch) -> dict[str, Any]:
    """The settings of the run, checked; those of an earlier run when it is to be resumed.

    Raises
    ------
    BadInputError : values of a wrong kind, unknown names, or a run that cannot be resumed.
    """
    settings = hydra_compat.plain(config)
    check(settings, defaults(launch.choices, launch.sources))
    refuse_untrusted(settings, launch.overrides)
    refuse_mismatched(settings, launch.choices)
    if settings["resume"] is None:
        return settings
    if launch.sweep:
        raise BadInputError(
            "resume= goes on with one run. To go on with a sweep, give its command again with "
            "hydra.sweep.dir=FOLDER: it does only what is missing."
        )
    saved = saved_settings(settings, launch.overrides)
    check(saved, defaults({}, launch.sources))
    refuse_untrusted(saved, launch.overrides)
    return saved


if __name__ == "__main__":
    # Imported again under its own name: what a launcher sends to other processes is then found.
    from experiments.run import main as installed

    sys.exit(installed())
