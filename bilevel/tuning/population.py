"""Start points that fill the space of hyperparameters."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core import Problem
from bilevel.spaces import Free, Spaces
from bilevel.utils import (
    PyTree,
    require_positive,
    require_positive_int,
    require_variables,
    size,
    strip_weak_types,
)


def population(
    problem: Problem, hyper: PyTree, n: int, *, seed: int, spread: float = 2.0
) -> PyTree:
    """Return ``hyper`` itself and ``n - 1`` others: every leaf with a leading axis of n.

    A Latin hypercube: in each coordinate, one point in each of ``n - 1`` slices of equal size.
    Spaces with two finite ends, and simplices, are filled from end to end (``Log`` evenly on its
    log scale); elsewhere points lie within ``spread`` of ``hyper`` in free coordinates, a factor of
    ``e^spread`` for ``Log()``.

    Parameters
    ----------
    problem : its ``space`` says where hyperparameters may lie.
    hyper : in natural units; the first point, and the middle where a space has no ends.
    n : number of points.
    seed : of ``numpy.random.default_rng``.
    spread : see above.

    Raises
    ------
    ValueError : ``hyper`` outside its space, ``n`` below 1, a spread that is not positive.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> space = bl.spaces.Log(1e-3, 1e3)
    >>> problem = bl.Problem(lambda w, h, x: h * w**2, lambda w, h, x: w, space=space)
    >>> starts = bl.population(problem, jnp.array(1.0), 4, seed=0)
    >>> jnp.sort(jnp.digitize(starts[1:], jnp.array([0.1, 10.0]))).tolist()
    [0, 1, 2]
    """
    require_positive_int("population", "n", n)
    require_positive("population", "spread", spread)
    require_variables("hyper", hyper)
    hyper = strip_weak_types(hyper)
    problem.require_inside(hyper)
    spaces = Spaces.of(Free()) if problem.space is None else problem.space
    free = spaces.free(hyper)
    rng, others, d = np.random.default_rng(seed), n - 1, size(free)
    slices = rng.permuted(np.tile(np.arange(others), (d, 1)), axis=1).T
    uniform = (slices + rng.random((others, d))) / max(others, 1)
    leaves, structure = jax.tree.flatten(free)
    parts = np.split(uniform, np.cumsum([leaf.size for leaf in leaves])[:-1], axis=1)
    cube = [
        jnp.asarray(part.reshape(others, *leaf.shape), leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    points = spaces.natural(spaces.sample(structure.unflatten(cube), free, spread))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), hyper, points)
