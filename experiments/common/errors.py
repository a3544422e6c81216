"""How the command line refuses: one exception, and the suggestion of a name that exists."""

import difflib
from collections.abc import Iterable


class BadInputError(ValueError):
    """Bad input; the text says what, where, what was expected, and the likely cure."""


class DamagedError(BadInputError):
    """A file that is not what was written."""


def explain_os(error: OSError) -> str:
    """`FILE: No space left on device.`, as far as the system says so."""
    if error.filename is None or error.strerror is None:
        return str(error.strerror or error)
    return f"{error.filename}: {error.strerror}."


_MANY = 32


def suggest(name: str, names: Iterable[str]) -> str:
    """`Did you mean 'ridge'? Available: logistic, ridge.`, as far as there is something to say."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    parts = [f"Did you mean {close[0]!r}?"] if close else []
    parts += [f"Available: {', '.join(names)}."] if 0 < len(names) <= _MANY else []
    return " ".join(parts)
