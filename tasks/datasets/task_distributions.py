"""Families of learning tasks: what is drawn to learn from, and the unseen tasks to be judged by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.datasets.archives import read_arrays
from tasks.datasets.tables import ROOT

OMNIGLOT = "omniglot_background"


@dataclass(frozen=True)
class Family:
    """One leading axis of tasks, then examples: ``inner`` to adapt to, ``outer`` to be judged by.

    Parameters
    ----------
    pool : what training draws from: tasks, or whatever the family's own draw makes them of.
    test : unseen tasks, ``((X, y), (X, y))`` with a leading axis of tasks.
    shape : of one input; ``outputs`` : of the network.
    classes : whether ``y`` is a class number.
    notes : facts worth recording.
    """

    pool: bl.Data
    test: bl.Data
    shape: tuple[int, ...]
    outputs: int
    classes: bool
    notes: dict[str, Any]


def sinusoids(
    *, shots: int, queries: int, pool: int, test_tasks: int, test_queries: int, seed: int
) -> Family:
    r"""Draw regressions ``y = a sin(x - p)``, ``a ~ U[.1, 5]``, ``p ~ U[0, pi]``, ``x ~ U[-5, 5]``.

    The family of MAML (Finn et al., 2017). ``pool`` tasks are drawn once and kept.
    """
    train, test = np.random.SeedSequence(seed).spawn(2)
    return Family(
        _sinusoids(np.random.default_rng(train), pool, shots, queries),
        _sinusoids(np.random.default_rng(test), test_tasks, shots, test_queries),
        (1,),
        1,
        False,
        {"pool of tasks": pool},
    )


def _sinusoids(rng: np.random.Generator, tasks: int, shots: int, queries: int) -> bl.Data:
    amplitude = rng.uniform(0.1, 5.0, (tasks, 1, 1))
    phase = rng.uniform(0.0, np.pi, (tasks, 1, 1))
    x = rng.uniform(-5.0, 5.0, (tasks, shots + queries, 1))
    x, y = (jnp.asarray(a, jnp.result_type(float)) for a in (x, amplitude * np.sin(x - phase)))
    return bl.Data(inner=(x[:, :shots], y[:, :shots]), outer=(x[:, shots:], y[:, shots:]))


@dataclass(frozen=True)
class Episodes:
    """A classification task made of ``ways`` characters, none of them drawn twice.

    ``draw`` of :class:`bilevel.Sampled` on images ``[characters, drawers, h, w]`` in 0 .. 255. Each
    character is shown by ``shots`` people to learn from and by ``queries`` others to be judged by.
    """

    ways: int
    shots: int
    queries: int

    def __call__(self, data: bl.Data, key: Array) -> bl.Data:
        """``((X [ways shots, h, w], y), (X [ways queries, h, w], y))``, X in 0 .. 1."""
        images = data.inner
        characters, drawers = images.shape[:2]
        key, key_drawers = jax.random.split(key)
        chosen = jax.random.choice(key, characters, (self.ways,), replace=False)
        keys = jax.random.split(key_drawers, self.ways)
        people = jax.vmap(lambda k: jax.random.permutation(k, drawers))(keys)
        people = people[:, : self.shots + self.queries]
        X = images[chosen[:, None], people] / jnp.asarray(255, jnp.result_type(float))
        y = jnp.broadcast_to(jnp.arange(self.ways, dtype=jnp.int32)[:, None], people.shape)

        def flat(leaf: Array) -> Array:
            return leaf.reshape(-1, *leaf.shape[2:])

        inner, outer = slice(None, self.shots), slice(self.shots, None)
        return bl.Data(
            inner=(flat(X[:, inner]), flat(y[:, inner])),
            outer=(flat(X[:, outer]), flat(y[:, outer])),
        )


def omniglot(
    *,
    ways: int,
    shots: int,
    queries: int,
    test_tasks: int,
    test_queries: int,
    test_alphabets: int,
    root: str | None,
    seed: int,
) -> Family:
    """Read handwritten characters: training and test tasks come from different alphabets.

    Raises
    ------
    ValueError : no data; more characters or people asked for than there are.
    """
    images, alphabet, names = _omniglot(root)
    if not 0 < test_alphabets < len(names):
        raise ValueError(
            f"test_alphabets={test_alphabets} must lie between 1 and {len(names) - 1}: there are "
            f"{len(names)} alphabets, and training needs one."
        )
    drawers = images.shape[1]
    if shots + max(queries, test_queries) > drawers:
        raise ValueError(
            f"shots={shots} and queries={max(queries, test_queries)} need more people than the "
            f"{drawers} who drew each character."
        )
    order = np.random.RandomState(seed).permutation(len(names))
    unseen = np.isin(alphabet, order[:test_alphabets])
    fewest = min(unseen.sum(), (~unseen).sum())
    if not 1 < ways <= fewest:
        raise ValueError(f"ways={ways} must lie between 2 and the {fewest} characters of a part.")
    train, test = (jnp.asarray(images[part]) for part in (~unseen, unseen))
    keys = jax.random.split(jax.random.key(seed), test_tasks)
    drawn = jax.jit(jax.vmap(Episodes(ways, shots, test_queries), in_axes=(None, 0)))
    return Family(
        bl.Data(inner=train, outer=train),
        drawn(bl.Data(inner=test, outer=test), keys),
        images.shape[2:],
        ways,
        True,
        {"test alphabets": [str(names[i]) for i in order[:test_alphabets]]},
    )


def _omniglot(root: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read images ``[characters, drawers, 28, 28]``, each character's alphabet, their names."""
    path = (Path(root) if root is not None else ROOT) / f"{OMNIGLOT}.npz"
    if not path.is_file():
        raise ValueError(
            f"there is no {path}. Pass root=FOLDER with {OMNIGLOT}.npz in it (arrays images28, "
            "character_alphabet, alphabet_names), or take data=sinusoid, which needs no file."
        )
    file = read_arrays(path)
    alphabet, names, images = (
        file[name] for name in ("character_alphabet", "alphabet_names", "images28")
    )
    return images.reshape(len(alphabet), -1, *images.shape[1:]), alphabet, names
