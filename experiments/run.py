"""The command `python -m experiments.run`: one run, or with `-m` one of each combination.

Exit status: 0 done, 1 bad input, 2 diverged, 130 interrupted (`resume=FOLDER` goes on).
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
from experiments.resume import RESULT, command, finished, saved_settings
from experiments.settings import check, defaults
from experiments.words import BadInputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

OK, BAD_INPUT, DIVERGED, INTERRUPTED = 0, 1, 2, 130


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
        return BAD_INPUT
    return OK


def task(config: "DictConfig") -> float | None:
    """One job of Hydra's: returns the final outer value, which sweepers minimise.

    Raises
    ------
    RunError, DivergedError : the run did not end well; `result.json` says so too.
    """
    from rich.console import Console

    launch = Launch.current()
    folder = launch.folder
    console = Console(width=None if sys.stdout.isatty() else 100)
    facts: dict[str, Any] = {"choices": launch.choices, "overrides": launch.overrides}
    try:
        settings = prepare(config, launch)
        console.print(f"run folder      {folder}", highlight=False, soft_wrap=True)
        result = finished(folder, settings)
        if result:
            done = result["steps"]
            console.print(f"finished already: {done} outer steps. A larger steps= goes on.")
        else:
            from experiments.session import perform

            result = perform(settings, folder, facts, console)
    except KeyboardInterrupt:
        console.print(
            f"\ninterrupted; go on with: {command(folder)}", highlight=False, soft_wrap=True
        )
        raise
    except Exception as error:
        raise _failed(error, folder, facts) from error
    if result["status"] == "diverged":
        raise DivergedError(result["message"])
    return result["value"]


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
