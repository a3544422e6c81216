"""A checkpoint gives back what was saved, or says what is wrong with it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.errors import BadInputError, DamagedError
from experiments.storage import checkpoint


class Pair(NamedTuple):
    """A node whose fields are named in addresses."""

    a: Any
    b: Any


def some_state(seed: int = 0) -> dict[str, Any]:
    key = jax.random.key(seed)
    return {
        "key": key,
        "keys": jax.random.split(key, 3),
        "x/y": Pair(jax.random.normal(key, (2, 3)), jnp.zeros((0, 4), jnp.int32)),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "none": None,
        "flag": jnp.array(True),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    history = {"value": np.array([1.0, np.nan]), "a/b": np.ones((2, 3), np.float32)}
    checkpoint.save(tmp_path / "s" / "state.npz", some_state(), history, {"steps": 2})
    return tmp_path / "s" / "state.npz"


def test_round_trip_is_exact(path: Path) -> None:
    loaded = checkpoint.load(path)
    again = checkpoint.restore(loaded, jax.eval_shape(some_state))
    assert jax.tree.structure(again) == jax.tree.structure(some_state())
    for (address, leaf), expected in zip(
        jax.tree_util.tree_leaves_with_path(again), jax.tree.leaves(some_state()), strict=True
    ):
        assert leaf.dtype == expected.dtype, address
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, expected = jax.random.key_data(leaf), jax.random.key_data(expected)
        assert np.asarray(leaf).tobytes() == np.asarray(expected).tobytes()
    np.testing.assert_array_equal(loaded.history["value"], [1.0, np.nan])
    assert loaded.history["a/b"].dtype == np.float32
    assert loaded.about == {"steps": 2}


def test_nothing_else_is_left_beside_it(path: Path) -> None:
    checkpoint.save(path, some_state(1), {}, {})
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, some_state(1), {}, {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_half_written_file_is_detected(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadInputError, match=r"state\.npz: this checkpoint is damaged"):
        checkpoint.load(path)


def test_changed_byte_is_detected(path: Path) -> None:
    """In the zip's own tables, in the manifest, in an array."""
    content, saved = path.read_bytes(), checkpoint.load(path)
    unused, places = 0, range(0, len(content), 7)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        try:
            loaded = checkpoint.load(path)
        except DamagedError:
            continue
        # A byte that no reader uses, such as a time stamp: the content must be what was saved.
        unused += 1
        assert loaded.about == saved.about
        for name, array in saved.state.items():
            assert loaded.state[name].tobytes() == array.tobytes()
    assert unused < len(places) / 2


def test_digest_covers_what_the_zip_checks_do_not(path: Path) -> None:
    with np.load(path) as file:
        members = dict(file)
    first = next(name for name, array in members.items() if array.dtype == np.float32)
    members[first] = members[first] + 1
    np.savez(path, **members)
    with pytest.raises(BadInputError, match="digest does not match"):
        checkpoint.load(path)


def test_other_format_is_named(path: Path) -> None:
    with np.load(path) as file:
        members = dict(file)
    manifest = json.loads(members["manifest"].tobytes()) | {"format": 99}
    members["manifest"] = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    np.savez(path, **members)
    with pytest.raises(BadInputError, match="has format 99, this version reads format 1"):
        checkpoint.load(path)


def test_pickles_are_not_read(path: Path) -> None:
    np.savez(path, manifest=np.array({"a": 1}, dtype=object))
    with pytest.raises(BadInputError, match="damaged"):
        checkpoint.load(path)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="there is no checkpoint here"):
        checkpoint.load(tmp_path / "state.npz")


def changed(**leaves: Any) -> Any:
    return jax.eval_shape(lambda: some_state() | leaves)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (changed(extra=jnp.zeros(2)), r"\['extra'\] is in only one of the two"),
        (changed(flag=None), r"\['flag'\] is in only one of the two"),
        (changed(half=jnp.zeros(4, jnp.bfloat16)), r"bfloat16\[3\] in it, but bfloat16\[4\] here"),
        (changed(half=jnp.zeros(3)), r"\['half'\] is bfloat16\[3\] in it, but float32\[3\] here"),
        (changed(key=jax.random.key(0, impl="rbg")), r"\['key'\] is uint32\[\] in it, but key"),
    ],
)
def test_structure_of_another_run_is_refused(path: Path, like: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        checkpoint.restore(checkpoint.load(path), like)
