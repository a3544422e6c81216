"""All that evolves in a run, in one file that is either whole or absent.

The file is an npz without pickles: the leaves of `tune`'s state, the history so far, and a
manifest (JSON) with the format, the address, shape and dtype of each leaf, what the run was, and a
SHA-256 over all of it.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.errors import BadInputError, DamagedError
from experiments.common.files import write_whole
from tasks.datasets.archives import read_arrays

FORMAT = 1
PLACE = Path("checkpoint") / "state.npz"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """`state` as arrays by address, `history` as arrays by name, `about` as JSON would hold it."""

    state: Arrays
    history: Arrays
    about: dict[str, Any]


def save(path: Path, state: Any, history: Arrays, about: dict[str, Any]) -> None:
    """Write the pytree `state` (typed keys included), `history`, and facts about the run."""
    arrays = {f"state{address}": array for address, array in _leaves(state).items()}
    arrays |= {f"history/{name}": np.asarray(rows) for name, rows in history.items()}
    manifest: dict[str, Any] = {"format": FORMAT, "about": about, "arrays": _describe(arrays)}
    manifest["digest"] = _digest(manifest, arrays)
    text = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    # Names of members are numbers: addresses may hold characters that a zip file does not.
    members = {str(number): array for number, array in enumerate(arrays.values())}
    write_whole(path, lambda file: np.savez(file, manifest=text, **members))  # pyright: ignore


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises
    ------
    BadInputError : the file is absent, or of another format.
    DamagedError : it is not what was written.
    """
    if not path.is_file():
        raise BadInputError(f"{path}: there is no checkpoint here.")
    try:
        members = read_arrays(path, compressed=False)
        manifest = json.loads(members["manifest"].tobytes())
        version, entries = manifest["format"], manifest["arrays"]
        stored = [members[str(number)] for number in range(len(entries))]
        arrays = {
            str(entry["name"]): _typed(array, entry["dtype"])
            for entry, array in zip(entries, stored, strict=True)
        }
        about, digest = manifest["about"], manifest.pop("digest")
        whole = _describe(arrays) == entries and digest == _digest(manifest, arrays)
    except Exception as error:  # a changed byte may raise anything, in zipfile or in numpy
        raise _damaged(path, str(error)) from error
    if version != FORMAT:
        raise BadInputError(f"{path}: has format {version}, this version reads format {FORMAT}.")
    if not whole:
        raise _damaged(path, "its digest does not match its content")
    return Checkpoint(
        {n.removeprefix("state"): a for n, a in arrays.items() if n.startswith("state")},
        {n.removeprefix("history/"): a for n, a in arrays.items() if n.startswith("history/")},
        about,
    )


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """Give raw bytes their dtype: numpy stores those that it does not know (bfloat16) as such."""
    return array.view(jnp.dtype(dtype)) if array.dtype.kind == "V" else array


def restore(checkpoint: Checkpoint, like: Any) -> Any:
    """The pytree that was saved; `like` has its structure (arrays or `ShapeDtypeStruct`).

    Raises
    ------
    BadInputError : structure, shapes or dtypes are not those of `like`.
    """
    expected, treedef = jax.tree_util.tree_flatten_with_path(like)
    addresses = [jax.tree_util.keystr(path) for path, _ in expected]
    if missing := sorted(set(addresses) ^ set(checkpoint.state)):
        raise BadInputError(
            f"The checkpoint holds the state of another run: {missing[0]} is in only one of the "
            "two. Resume with the task, solver, estimator and outer optimiser that it was made by."
        )
    pairs = zip(addresses, expected, strict=True)
    return jax.tree.unflatten(
        treedef, [_revive(checkpoint.state[a], leaf, a) for a, (_, leaf) in pairs]
    )


def _revive(stored: np.ndarray, like: Any, address: str) -> Any:
    value = jnp.asarray(stored)
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        value = jax.random.wrap_key_data(value)
    if (value.shape, value.dtype) != (like.shape, like.dtype):
        raise BadInputError(
            f"The checkpoint holds the state of another run: {address} is "
            f"{stored.dtype}{list(value.shape)} in it, but {like.dtype}{list(like.shape)} here. "
            "Was it made with other data, sizes or precision?"
        )
    return value


def _leaves(tree: Any) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _array(leaf) for path, leaf in leaves}


def _array(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _describe(arrays: Arrays) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in arrays.items()
    ]


def _digest(manifest: dict[str, Any], arrays: Arrays) -> str:
    sha = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode())
    for array in arrays.values():
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path}: this checkpoint is damaged ({why}).")
