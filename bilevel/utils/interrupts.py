"""Interrupts that are not lost: an exception may be, a flag is not.

While JAX compiles, Python may run a signal's handler within JAX's garbage-collection callback,
where an exception that is raised is reported and dropped, about once in nine times.
"""

import signal
import threading
from types import FrameType
from typing import Any


class RememberInterrupts:
    """A context in which an interrupt that was dropped is raised again.

    It is about signals whose handler raises ``KeyboardInterrupt``
    (``signal.default_int_handler``), in the main thread: Ctrl-C, and SIGTERM where a program has
    asked for the same. They are raised at once as ever, and remembered: should the exception have
    been dropped, ``check()`` or the end of the context raises it. Contexts may be nested.

    Examples
    --------
    >>> from bilevel.extend import RememberInterrupts
    >>> with RememberInterrupts() as interrupts:
    ...     for step in range(3):
    ...         interrupts.check()
    """

    def __init__(self) -> None:
        self._caught = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "RememberInterrupts":
        """Remember signals from now on."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(signum)
                if handler is signal.default_int_handler or isinstance(
                    getattr(handler, "__self__", None), RememberInterrupts
                ):
                    self._before[signum] = handler
                    signal.signal(signum, self.remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put the handlers back; raise what was dropped, or turned into another exception."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if kind is None or issubclass(kind, Exception):  # JAX's C++ makes a ValueError of it
            self.check()

    def remember(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal, then do what would have been done without this context."""
        self._caught = True
        self._before[signum](signum, frame)

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal has come."""
        if self._caught:
            raise KeyboardInterrupt
