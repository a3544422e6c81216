"""One process at a time in a run folder: a lock that the kernel releases when its process ends."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.common.files import remove_parts

try:
    import fcntl
except ImportError:  # not a Unix: nothing is locked
    fcntl = None

PLACE = ".lock"


class BusyError(Exception):
    """Another process is at work in the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Be the only process at work in `folder`; what a killed one has half written is removed.

    The file stays: were it removed, two processes could each lock a file of that name.

    Raises
    ------
    BusyError : another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PLACE).open("a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise BusyError(f"{folder}: {file.read() or 'a process'} is at work here.") from error
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        remove_parts(folder)
        yield
