"""Results and checkpoints that attack: they are named, nothing is run, nothing is unpacked."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common.errors import BadInputError, DamagedError
from experiments.storage import checkpoint
from experiments.storage.result_file import LARGEST, is_about_run, read_result
from tests.experiments.conftest import Command
from tests.marks import quick_cases

CANARY = "canary"
Members = dict[str, bytes]


class Touch:
    """Unpickled, it makes the folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (CANARY,)


def npy(array: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **how)
    return file.getvalue()


def header(text: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An array file whose header is this text."""
    body = text.encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(body))
    return b"\x93NUMPY" + bytes(version) + length + body + content


def described(dtype: str, shape: str) -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}"


OBJECTS = npy(np.array([Touch()], dtype=object), allow_pickle=True)
PLAIN = npy(np.frombuffer(json.dumps({"format": 1, "about": {}, "arrays": []}).encode(), np.uint8))
CALL = "__import__('os').mkdir('canary')"


def manifest(**changes: Any) -> bytes:
    text = {"format": 1, "about": {}, "arrays": [], "digest": ""} | changes
    return npy(np.frombuffer(json.dumps(text).encode(), np.uint8))


def text(content: str) -> bytes:
    return npy(np.frombuffer(content.encode(), np.uint8))


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "statex", "dtype": "float32", "shape": [1]} | changes]


MEMBERS: dict[str, Members] = {
    "objects": {"manifest.npy": OBJECTS},
    "objects as state": {"manifest.npy": manifest(arrays=entry()), "0.npy": OBJECTS},
    "a pickle by name": {"manifest.npy": pickle.dumps(Touch())},
    "a pickle beside it": {"manifest.npy": PLAIN, "0.pkl": pickle.dumps(Touch())},
    "objects within a structure": {
        "manifest.npy": header(described("[('a', '|O')]", "(1,)"), pickle.dumps(Touch()))
    },
    "a call as header": {"manifest.npy": header(CALL)},
    "a call as shape": {"manifest.npy": header(described("'<f4'", CALL))},
    "a call as dtype": {"manifest.npy": header(described(CALL, "(1,)"))},
    "a huge shape": {"manifest.npy": header(described("'<f8'", "(10**6, 10**6)"))},
    "a huge literal": {"manifest.npy": header(described("'<f8'", "(1000000000000,)"))},
    "a negative shape": {"manifest.npy": header(described("'<f8'", "(-1,)"))},
    "a shape of texts": {"manifest.npy": header(described("'<f8'", "('a',)"))},
    "zero times infinity": {"manifest.npy": header(described("'<f8'", "(0, 1000000000000)"))},
    "a huge entry": {"manifest.npy": header(described("'<U1000000000'", "(1,)"))},
    "a deep header": {"manifest.npy": header("(" * 9000, version=(2, 0))},
    "a long header": {"manifest.npy": header(" " * 2**21, version=(2, 0))},
    "another format": {"manifest.npy": header(described("'<f8'", "()"), version=(9, 0))},
    "no array": {"manifest.npy": b"#!/bin/sh\ntouch canary\n"},
    "nothing": {},
    "no manifest": {"0.npy": PLAIN},
    "a path upwards": {"../../canary.npy": PLAIN, "manifest.npy": PLAIN},
    "an absolute path": {"/canary.npy": PLAIN, "manifest.npy": PLAIN},
    "no JSON": {"manifest.npy": text("os.system('touch canary')")},
    "deep JSON": {"manifest.npy": text("[" * 100_000)},
    "a list": {"manifest.npy": text("[1, 2]")},
    "a long number": {"manifest.npy": text('{"format": ' + "9" * 10_000 + "}")},
    "arrays that are none": {"manifest.npy": manifest(arrays=3)},
    "more arrays than there are": {"manifest.npy": manifest(arrays=entry() * 3)},
    "an entry without a name": {"manifest.npy": manifest(arrays=[{}]), "0.npy": PLAIN},
    "a dtype that is called": {"manifest.npy": manifest(arrays=entry(dtype=CALL)), "0.npy": PLAIN},
    "a dtype of objects": {
        "manifest.npy": manifest(arrays=entry(dtype="object")),
        "0.npy": npy(np.zeros(1, "V8")),
    },
    "the digest of another": {"manifest.npy": manifest(digest="0" * 64)},
}


def write(path: Path, members: Members, how: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("name", MEMBERS)
def test_hostile_checkpoint_is_named_and_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run" / "state.npz", MEMBERS[name])
    with pytest.raises(DamagedError, match=r"state\.npz: this checkpoint is damaged"):
        checkpoint.load(tmp_path / "run" / "state.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_canary_sings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, read as they must not be, make the file."""
    monkeypatch.chdir(tmp_path)
    np.lib.format.read_array(io.BytesIO(OBJECTS), allow_pickle=True)
    assert (tmp_path / CANARY).exists()


def test_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.npz"
    write(path, {"manifest.npy": npy(np.zeros(2**24, np.uint8))}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DamagedError, match="is compressed, which this program never writes"):
        checkpoint.load(path)


SETTLED = {"settings": {}, "seconds": 1, "compile_seconds": 0.5, "message": None}
ABOUTS: dict[str, Any] = {
    "nothing": {},
    "a list": [],
    "a text": "os.system",
    "settings": {"settings": "x"},
    "seconds": {"seconds": "1"},
    "infinite seconds": {"seconds": float("inf")},
    "checks": {"checks": [[]]},
    "steps of checks": {"checks": [{"step": "0"}]},
    "message": {"message": ["x"]},
}


def test_what_a_checkpoint_says_of_its_run_is_looked_at() -> None:
    whole = SETTLED | {"checks": [{"step": 0, "grad_error": float("nan")}]}
    assert is_about_run(whole)
    for change in ABOUTS.values():
        assert not is_about_run(whole | change if change and isinstance(change, dict) else change)


@quick_cases(3, "name", ["settings", "a text", "objects", "a call as header", "no manifest"])
def test_run_with_a_hostile_checkpoint_begins_again(
    command: Command, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "run"
    place = folder / checkpoint.PLACE
    assert command(f"hydra.run.dir={folder}", "steps=1").status == 0
    if name in MEMBERS:
        write(place, MEMBERS[name])
    else:
        saved = checkpoint.load(place)
        about = ABOUTS[name]
        if isinstance(about, dict):
            about = saved.about | about
        checkpoint.save(place, {}, {}, about)
    outcome = command(f"resume={folder}", "steps=2", "compile_cache=null", quick=[])
    assert outcome.status == 0
    assert "this checkpoint is damaged" in outcome.err
    assert "Traceback" not in outcome.err
    assert (place.parent / "state.npz.damaged-1").is_file()
    assert not (tmp_path / CANARY).exists()


OVERRIDES: dict[str, list[Any]] = {
    "trust": ["trust=[os]", "task=custom", "task.function=os:system"],
    "a folder": ["hydra.run.dir=canary"],
    "a launcher": ["hydra/launcher=joblib"],
    "a callback": ["+hydra.callbacks.x={_target_: os.mkdir, path: canary}"],
    "a shell": ["; touch canary", "$(touch canary)", "`touch canary`"],
    "numbers": [1, 2],
    "lists": [["a"]],
}


@quick_cases(2, "name", OVERRIDES)
def test_overrides_of_a_result_are_words(command: Command, tmp_path: Path, name: str) -> None:
    """They are shown, in a command that a shell takes for one; none is obeyed."""
    folder = tmp_path / "run"
    assert command(f"hydra.run.dir={folder}", "steps=1").status == 0
    path = folder / "result.json"
    result = json.loads(path.read_text()) | {"overrides": OVERRIDES[name]}
    path.write_text(json.dumps(result))
    outcome = command(f"resume={folder}", "steps=2", "compile_cache=null", quick=[])
    assert outcome.status in (0, 1)
    assert "Traceback" not in outcome.err
    assert not (tmp_path / CANARY).exists()
    after = json.loads(path.read_text())
    assert after["steps"] == 1 + (outcome.status == 0)
    assert after["settings"]["trust"] == []


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)


@pytest.mark.parametrize("make", [endless, pipe, large, Path.mkdir])
def test_result_that_never_ends_is_not_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "result.json")
    with pytest.raises(BadInputError, match=r"result\.json: this is no (file|result)"):
        read_result(tmp_path / "result.json")
