"""What is printed to a reader that may go away: `... | head` is no failure."""

import os
import sys
from collections.abc import Callable

from rich.console import Console


class PipedConsole(Console):
    """A console that says when its reader has gone; Rich's own ends the process with status 1."""

    def on_broken_pipe(self) -> None:
        """Send what is still printed nowhere.

        Raises
        ------
        BrokenPipeError : always.
        """
        drop_output()
        raise BrokenPipeError


def drop_output() -> None:
    """Send what is still printed, and what Python flushes when it ends, nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def piped(main: Callable[[], int]) -> int:
    """Return the exit status of a command; 0 where its reader has seen enough."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
        return 0
    return status
