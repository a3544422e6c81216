"""Old names that still work for one release, with a warning."""

import warnings
from typing import Any


def renamed(module: str, names: dict[str, tuple[str, Any]], name: str) -> Any:
    """Return what an old name stands for, with a warning; ``names``: old to ``(new, object)``.

    Raises
    ------
    AttributeError : neither an old nor a new name.
    """
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new, what = names[name]
    message = f"{module}.{name} is now {module}.{new}; the old name goes with the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return what
