"""An npz is measured before it is unpacked; whatever it claims, nothing large is made of it."""

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.datasets import archives
from tasks.datasets.archives import read_arrays
from tasks.datasets.files import read


def member(shape: tuple[Any, ...], dtype: str = "<f8", content: bytes = b"") -> bytes:
    """An npy with this header, whatever follows it."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def packed(path: Path, how: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


HOSTILE = {
    "claims a terabyte": (member((2**37,)), "says that it holds"),
    "claims less": (member((1,), content=b"\0" * 80), "says that it holds 8 bytes, and holds 80"),
    "negative": (member((-1,)), "has the shape"),
    "no integer": (member((True, 2**40)), "says that it holds"),
    "objects": (member((1,), "|O", pickle.dumps([print])), "never unpickled"),
    "nested objects": (member((1,), "|O"), "never unpickled"),
    "no header": (b"PK\x03\x04", "magic"),
    "empty": (b"", "EOF"),
    "another version": (b"\x93NUMPY\x09\x00" + b"\0" * 99, "has the format"),
    "header without end": (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 9, "cannot be read"),
    "header that is code": (
        b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').getcwd()".ljust(31) + b"\n",
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_array_is_refused_before_memory_is_taken(tmp_path: Path, name: str) -> None:
    content, words = HOSTILE[name]
    path = packed(tmp_path / "a.npz", X=content, y=member((2,), content=b"\0" * 16))
    tracemalloc.start()
    with pytest.raises(ValueError, match=words):
        read_arrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte that becomes sixteen, on a machine of sixteen."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, X=np.zeros((2**20, 2)), y=np.arange(2**20))
    assert path.stat().st_size < 2**21
    monkeypatch.setattr(archives, "memory", lambda: 2**24)
    with pytest.raises(ValueError, match=r"would take 0\.0 GiB when unpacked"):
        read_arrays(path)
    with pytest.raises(ValueError, match=r"bomb\.npz cannot be read as npz"):
        read(path)


def test_what_this_program_writes_is_not_compressed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(9))
    with pytest.raises(ValueError, match="compressed, which this program never writes"):
        read_arrays(tmp_path / "a.npz", compressed=False)


def test_members_are_counted_once(tmp_path: Path) -> None:
    whole = member((1,), content=b"\0" * 8)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", whole)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", whole)
    with pytest.raises(ValueError, match="some of them twice"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_honest_arrays_are_read(tmp_path: Path, save: Any) -> None:
    arrays = {
        "x": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "n": np.array(3, np.int8),
        "none": np.zeros((0, 4)),
        "text": np.array(["a", "bc"]),
        "half": np.ones(3, np.float16),
    }
    save(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
