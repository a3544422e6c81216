"""The arrays of an npz file, after a look at what they would take: a small file may claim much."""

import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MEMBERS = 100_000


def read_arrays(path: Path, *, compressed: bool = True) -> dict[str, np.ndarray]:
    """Return the arrays by name, never by pickle; nothing is unpacked before its size is known.

    ``compressed``: whether the file may be; one that is not cannot hold more than its own size.

    Raises
    ------
    ValueError, OSError : it is no npz, it would not fit into the memory of this machine, an array
        is not as large as its header says, or its entries are objects.
    """
    with path.open("rb") as file:
        try:
            _refuse_large(file, path, compressed=compressed)
        except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{path} is no npz file: {error}") from error
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def _refuse_large(file: IO[bytes], path: Path, *, compressed: bool) -> None:
    most = memory() // 2
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > _MEMBERS or len({member.filename for member in members}) < len(members):
            raise ValueError(f"{path} has {len(members)} members, some of them twice or too many.")
        if not compressed and any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise ValueError(f"{path} is compressed, which this program never writes.")
        if total > most:
            raise ValueError(
                f"{path} would take {total / 2**30:.1f} GiB when unpacked; half of this machine's "
                f"memory is {most / 2**30:.1f} GiB."
            )
        for member in members:
            with archive.open(member) as content:
                size = _size_by_header(content, f"{path}: {member.filename}")
                if size + content.tell() != member.file_size:
                    raise ValueError(
                        f"{path}: {member.filename} says that it holds {size} bytes, and holds "
                        f"{member.file_size - content.tell()}."
                    )


def _size_by_header(content: IO[bytes], name: str) -> int:
    version = np.lib.format.read_magic(content)
    if version not in _HEADERS:
        raise ValueError(f"{name} has the format {version}, which plain arrays do not have.")
    try:
        shape, _, dtype = _HEADERS[version](content)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} has a header that cannot be read: {error}") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects, not numbers: they are never unpickled.")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{name} has the shape {shape}.")
    return math.prod(shape) * dtype.itemsize


def memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
