"""Files that are either whole or absent: written beside their place, then moved there."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_PART = ".part"


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` on a new file, force it to the disk, and only then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names none
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Force the new name to the disk too, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Remove what :func:`write_whole` of a killed process has left in `folder` and one below."""
    for pattern in (f".*{_PART}", f"*/.*{_PART}"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def set_aside(path: Path, what: str) -> Path:
    """Rename a damaged file, and say `what` it was; returns its new place."""
    number = 1
    while (place := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.replace(place)
    print(f"{what} Set aside as {place.name}.", file=sys.stderr, flush=True)
    return place


def write_json(path: Path, content: Any) -> None:
    """Readable JSON; what JSON has no number for (NaN, infinity) becomes null."""
    text = json.dumps(_jsonable(content), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(child) for child in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and JAX
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
