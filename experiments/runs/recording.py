"""How a run that does not end well is written down, and said."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.compatibility import blame
from experiments.cli.trust import needed
from experiments.common.errors import BadInputError, explain_os
from experiments.common.files import write_json
from experiments.storage.lock import BusyError
from experiments.storage.result_file import RESULT
from experiments.storage.resume import command

if TYPE_CHECKING:
    from rich.console import Console


class RunError(Exception):
    """The run ended without a result; the text says why."""


class SweepStopped(BaseException):
    """A job failed, and `keep_going=false` makes no further one."""


@contextmanager
def recorded(
    folder: Path, facts: dict[str, Any], console: "Console", again: str, *, sweep: bool = False
) -> Iterator[None]:
    """Write down a failure, and say how to go on after an interruption.

    A job of a `sweep` says at once that it failed: the sweep itself will only in the end.
    """
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError) as error:  # whoever read the output has gone
        text = f"\ninterrupted; go on with: {again or command(folder, needed(facts))}"
        with contextlib.suppress(BrokenPipeError):
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        raise KeyboardInterrupt from error
    except BusyError:  # of one of many: nothing has failed
        raise
    except Exception as error:
        failed = _write_failure(error, folder, facts)
        if sweep:
            print(f"failed: {folder}: {failed}", file=sys.stderr, flush=True)
        raise failed from error


@contextmanager
def ended_at_once(own: bool, status: int) -> Iterator[None]:
    """End the process at a signal while JAX is imported, which makes other exceptions of it.

    Nothing is written yet. Only the command's ``own`` process: a library must not end another's.
    """
    before = {}
    if own and threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is signal.default_int_handler:
                before[signum] = signal.signal(signum, lambda *_: os._exit(status))
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def stopping(folder: Path, stop: bool) -> Iterator[None]:
    """End the sweep with this job, should it fail and `stop` say so."""
    try:
        yield
    except RunError as error:
        if stop:
            raise SweepStopped(f"{folder}: {error} (keep_going=false)") from error
        raise


def _write_failure(error: Exception, folder: Path, facts: dict[str, Any]) -> RunError:
    """Say in a sentence why the run failed, and write it down beside the trace."""
    refused = isinstance(error, BadInputError)
    text = blame(_sentence(error), facts)
    path = folder / RESULT
    if not (refused and path.exists()):  # a refusal to go on leaves the run as it is
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # a full disk, a folder that cannot be written to
            write_json(path, facts | {"status": "failed", "error": text, "traceback": trace})
    return RunError(text)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return explain_os(error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
