"""One process at a time in a run folder: a lock that the kernel releases when its process ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.common.files import remove_parts

PLACE = ".lock"


class BusyError(Exception):
    """Another process is at work in the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only process at work in `folder`; what a killed one has half written is removed.

    The file stays, with the name of the process that had the lock last.

    Raises
    ------
    BusyError : another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLACE
    try:
        with FileLock(path, timeout=0):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            remove_parts(folder)
            yield
    except Timeout as error:
        holder = path.read_text(encoding="utf-8") or "a process"
        raise BusyError(f"{folder}: {holder} is at work here.") from error
