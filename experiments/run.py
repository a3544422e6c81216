"""The command `python -m experiments.run`: one run, or with `-m` one of each combination.

Exit status: 0 done, 1 bad input, 2 diverged, 3 another process is at work in the folder,
130 interrupted (`resume=FOLDER` goes on).
JAX is imported by the run itself, so that `--cfg job`, `--help` and completion stay fast.
"""

import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import hydra_compat
from experiments.files import write_json
from experiments.hydra_compat import Launch
from experiments.lock import BusyError, held
from experiments.resume import RESULT, command, finished, saved_settings
from experiments.settings import check, defaults
from experiments.words import BadInputError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

OK, BAD_INPUT, DIVERGED, BUSY, INTERRUPTED = 0, 1, 2, 3, 130


class RunError(Exception):
    """The run ended without a result; the text says why."""


class DivergedError(RunError):
    """The run ended with its last good state."""


def main() -> int:
    """Do what the command line says; returns the exit status."""
    if threading.current_thread() is threading.main_thread():
        # A scheduler's SIGTERM leaves a resumable run, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        hydra_compat.launch(task)
    except KeyboardInterrupt:
        return INTERRUPTED
    except DivergedError:
        return DIVERGED  # the summary has said it
    except (RunError, BadInputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY if isinstance(error, BusyError) else BAD_INPUT
    return OK


def task(config: "DictConfig") -> float | None:
    """One job of Hydra's: returns the final outer value, which sweepers minimise.

    Raises
    ------
    RunError, DivergedError : the run did not end well; `result.json` says so too.
    """
    from rich.console import Console

    launch = Launch.current()
    console = Console(width=None if sys.stdout.isatty() else 100)
    try:
        with held(launch.folder):
            result = _one(config, launch, console)
    except BusyError as error:
        console.print(f"left alone: {error}", highlight=False, soft_wrap=True)
        raise
    if result["status"] == "diverged":
        raise DivergedError(result["message"])
    return result["value"]


def _one(config: "DictConfig", launch: Launch, console: "Console") -> dict[str, Any]:
    """The result of the job: what was there already, or that of the run made now."""
    folder = launch.folder
    facts: dict[str, Any] = {"choices": launch.choices, "overrides": launch.overrides}
    try:
        settings = prepare(config, launch)
        console.print(f"run folder      {folder}", highlight=False, soft_wrap=True)
        if result := finished(folder, settings):
            console.print(_already(result), highlight=False, markup=False)
            return result
        from experiments.session import perform

        return perform(settings, folder, facts, console)
    except KeyboardInterrupt:
        console.print(
            f"\ninterrupted; go on with: {command(folder)}", highlight=False, soft_wrap=True
        )
        raise
    except Exception as error:
        raise _failed(error, folder, facts) from error


def _already(result: dict[str, Any]) -> str:
    if result["status"] == "diverged":
        return f"diverged already, after {result['steps']} outer steps: {result['message']}"
    return f"finished already: {result['steps']} outer steps. A larger steps= goes on."


def prepare(config: "DictConfig", launch: Launch) -> dict[str, Any]:
    """The settings of the run, checked; those of an earlier run when it is to be resumed.

    Raises
    ------
    BadInputError : values of a wrong kind, unknown names, or a run that cannot be resumed.
    """
    settings = hydra_compat.plain(config)
    check(settings, defaults(launch.choices, launch.sources))
    if settings["resume"] is None:
        return settings
    if launch.sweep:
        raise BadInputError(
            "resume= goes on with one run. To go on with a sweep, give its command again with "
            "hydra.sweep.dir=FOLDER: it does only what is missing."
        )
    return saved_settings(settings, launch.overrides)


def _failed(error: Exception, folder: Path, facts: dict[str, Any]) -> RunError:
    """Say in a sentence why the run failed, and write it down beside the trace."""
    refused = isinstance(error, BadInputError)
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    path = folder / RESULT
    if not (refused and path.exists()):  # a refusal to go on leaves the run as it is
        trace = "".join(traceback.format_exception(error))
        write_json(path, facts | {"status": "failed", "error": text, "traceback": trace})
    return RunError(text)


if __name__ == "__main__":
    # Imported again under its own name: what a launcher sends to other processes is then found.
    from experiments.run import main as installed

    sys.exit(installed())
