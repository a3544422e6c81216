"""Old names that still work for one release, with a warning."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

_GOES = "the old name goes with the next release."


def resolve_renamed(module: str, names: dict[str, tuple[str, _T]], name: str) -> _T:
    """Return what an old name stands for, with a warning; ``names``: old to ``(new, object)``.

    Raises
    ------
    AttributeError : neither an old nor a new name.
    """
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new, what = names[name]
    message = f"{module}.{name} is now {module}.{new}; {_GOES}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return what


class RenamedMethod:
    """A method's old name, which warns and returns the method of the new name."""

    def __init__(self, new: str) -> None:
        """``new`` is the name that the method has now."""
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        """Remember the old name."""
        self.old = name

    def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
        """Return the method under its new name, of the instance or of the class."""
        message = f"{owner.__name__}.{self.old} is now {owner.__name__}.{self.new}; "
        warnings.warn(message + _GOES, DeprecationWarning, stacklevel=2)
        return getattr(owner if instance is None else instance, self.new)
