"""A low-rank model of the Hessian and its damped inverse (Hataya and Yamada, AISTATS 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.linear.base import Matvec, Solution, as_operator, relative_residual
from bilevel.utils import PyTree, register_node, require_positive_int, size

_SKETCHES = ("columns", "gaussian")


@dataclass(frozen=True)
class Nystrom:
    r"""A damped low-rank inverse ``(H_r + damping I)^{-1} b`` with ``H_r = Y (S^T Y)^+ Y^T``.

    ``Y = H S``; ``S`` picks ``rank`` random columns or is Gaussian; the inverse follows from the
    eigenvectors of ``H_r`` (the Woodbury formula, in the stable form of Frangella, Tropp, Udell,
    SIMAX 2023). One batch of ``rank`` products, no iteration; memory ``rank`` vectors. The error is
    that of ``H - H_r``, small where the spectrum decays fast, and shows in the residual, which is
    that of the full damped Hessian.

    Parameters
    ----------
    rank : number of products; at most the number of parameters is used.
    sketch : ``"columns"``, as in the paper, or ``"gaussian"``, better where curvature is not
        aligned with the coordinates.

    Raises
    ------
    ValueError : ``rank`` below 1, an unknown ``sketch``, an operator without damping.

    Examples
    --------
    >>> import bilevel as bl, jax, jax.numpy as jnp
    >>> hessian = bl.linear.Operator(lambda v: jnp.array([1.0, 0.0]) * v, damping=1.0)
    >>> b, key = jnp.ones(2), jax.random.key(0)
    >>> bl.Nystrom(rank=2).solve(hessian, b, jnp.zeros(2), key).x
    Array([0.5, 1. ], dtype=float32)
    """

    needs_symmetry: ClassVar[bool] = True

    rank: int
    sketch: str = "columns"

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Nystrom", "rank", self.rank)
        if self.sketch not in _SKETCHES:
            raise ValueError(f"Nystrom: sketch must be one of {_SKETCHES}, got {self.sketch!r}.")

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array) -> Solution:
        """Sketch by ``key``, then invert; ``x0`` is not used."""
        operator = as_operator(hessian)
        if operator.damping is None:
            raise ValueError(
                "Nystrom inverts a matrix of low rank plus damping, and there is no damping. Give "
                "Implicit one, for example damping=0.01; it biases the hypergradient."
            )
        right, unravel = ravel_pytree(b)
        n, rank = size(b), min(self.rank, size(b))
        if self.sketch == "columns":
            scores = jax.random.uniform(key, (n,), right.dtype)
            if operator.support is not None:  # columns off the support are 0: take them last
                scores = scores + ravel_pytree(operator.support)[0]
            chosen = jax.lax.top_k(scores, rank)[1]
            test = jnp.zeros((rank, n), right.dtype).at[jnp.arange(rank), chosen].set(1)
        else:
            test = jnp.linalg.qr(jax.random.normal(key, (n, rank), right.dtype))[0].T
        images = jax.vmap(lambda v: ravel_pytree(operator.product(unravel(v)))[0])(test)

        values, vectors = _low_rank(test, images)
        inside = vectors.T @ right
        x = vectors @ (inside / (values + operator.damping))
        x = unravel((x + (right - vectors @ inside) / operator.damping).astype(right.dtype))
        return Solution(x, relative_residual(hessian, b, x), jnp.asarray(rank + 1, jnp.int32))


register_node(Nystrom, data_fields=[], meta_fields=["rank", "sketch"])


def _low_rank(test: Array, images: Array) -> tuple[Array, Array]:
    """Return eigenvalues ``[r]`` and orthonormal eigenvectors ``[n, r]`` of the model.

    Directions in which the core is rounding (or negative) are dropped: they are not in the model.
    """
    core = test @ images.T
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    kept = values > core.shape[0] * jnp.finfo(core.dtype).eps * jnp.max(jnp.abs(values))
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
    left, singular, _ = jnp.linalg.svd(images.T @ (vectors * scale), full_matrices=False)
    return singular**2, left
