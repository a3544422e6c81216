r"""Polyak's step: as far as the gradient says that the lowest value is.

    x+ = x - min((h(x) - lower) / (c |g|^2), longest / |g|_inf) g

Polyak, 1969; bounded, for stochastic gradients, by Loizou, Vaswani, Laradji, Lacoste-Julien,
AISTATS 2021; for bilevel problems Fan, Choné-Ducasse, Schmidt, Thrampoulidis, NeurIPS 2023.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree, axpy, register_node, require_positive, vdot, zeros_like


@dataclass(frozen=True)
class Polyak:
    """Polyak's step from a value that the outer loss cannot fall below.

    Where that is reached (a model that can interpolate the validation set), no step size converges
    faster. Where it is not, steps stay too long; then :class:`bilevel.outer.Auto`.

    Parameters
    ----------
    lower : lower bound of the outer loss.
    scaling : ``c``; 1 is Polyak's, 1/2 is common for stochastic gradients.
    longest : largest change of one hyperparameter in one step.

    Raises
    ------
    ValueError : ``scaling`` or ``longest`` not positive; no value given.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> rule, x = bl.outer.Polyak(), jnp.array(0.5)
    >>> step, _ = rule.update(2 * x, rule.init(x), x, value=x**2)
    >>> step  # half way to the minimum of x^2
    Array(-0.25, dtype=float32)
    """

    lower: float | Array = 0.0
    scaling: float | Array = 1.0
    longest: float | Array = 1.0

    def __post_init__(self) -> None:
        """Validate the scaling and the longest step."""
        for name in ("scaling", "longest"):
            require_positive("Polyak", name, getattr(self, name))

    def init(self, params: PyTree) -> tuple[()]:
        """Return the empty state."""
        return ()

    def update(
        self,
        updates: PyTree,
        state: tuple[()],
        params: PyTree = None,
        *,
        value: float | Array | None = None,
        **_: Any,
    ) -> tuple[PyTree, tuple[()]]:
        """Take one step."""
        if value is None:
            raise ValueError("Polyak needs the outer value: update(grad, state, hyper, value=...).")
        squared = vdot(updates, updates)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(updates)]))
        step = jnp.minimum(
            jnp.maximum(value - self.lower, 0) / jnp.where(squared > 0, self.scaling * squared, 1),
            self.longest / jnp.where(largest > 0, largest, 1),
        )
        return axpy(-step, updates, zeros_like(updates)), state


register_node(Polyak, data_fields=["lower", "scaling", "longest"], meta_fields=[])
