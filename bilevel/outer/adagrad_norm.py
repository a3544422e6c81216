r"""AdaGrad-norm: the gradient over the root of all squared norms so far.

    x+ = x - scale g / sqrt(sum_i |g_i|^2)

Ward, Wu, Bottou, ICML 2019; the outer step of tuning-free bilevel methods, Yang, Xiao, Ma, Ji, ICLR
2025 (D-TFBO, S-TFBO).
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree, axpy, dtype, register_node, require_positive, vdot, zeros_like


@dataclass(frozen=True)
class AdaGradNorm:
    """Steps that shrink by what has been seen; noise is averaged out and no value is needed.

    The first step has the length ``scale`` whatever the gradient's size; after k steps in one
    direction the run has come ``2 scale sqrt(k)`` far. :class:`bilevel.outer.DoG` finds the scale
    by itself.

    Parameters
    ----------
    scale : length of the first step, Euclidean.

    Raises
    ------
    ValueError : ``scale`` not positive.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> rule, x = bl.outer.AdaGradNorm(scale=0.5), jnp.array([3.0, 4.0])
    >>> step, _ = rule.update(x, rule.init(x), x)
    >>> step
    Array([-0.3, -0.4], dtype=float32)
    """

    scale: float | Array = 1.0

    def __post_init__(self) -> None:
        """Validate the length of the first step."""
        require_positive("AdaGradNorm", "scale", self.scale)

    def init(self, params: PyTree) -> Array:
        """Return the sum of squared norms, ``()``."""
        return jnp.zeros((), dtype(params))

    def update(
        self, updates: PyTree, state: Array, params: PyTree = None, **_: Any
    ) -> tuple[PyTree, Array]:
        """Take one step."""
        state = state + vdot(updates, updates).astype(state.dtype)
        step = self.scale / jnp.where(state > 0, jnp.sqrt(state), 1)
        return axpy(-step, updates, zeros_like(updates)), state


register_node(AdaGradNorm, data_fields=["scale"], meta_fields=[])
