"""L-BFGS within a trust region, one evaluation per outer step: formulas in ``trust_region.py``.

Liu, Nocedal, Mathematical Programming 1989; Nocedal, Wright, "Numerical Optimization", chapters 4
and 7.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.outer.base import flat_admit, flatten
from bilevel.outer.trust_region import (
    TrustRegionState,
    best_point,
    init_trust_region,
    judge_trial,
    propose_trial,
    shorten_refused,
)
from bilevel.utils import PyTree, register_node, require_positive_int


@dataclass(frozen=True)
class LBFGS:
    """A safeguarded quasi-Newton rule without a step size, for hypergradients without noise.

    The value of the accepted points never rises. The first move changes no hyperparameter by more
    than 0.5 (or a quarter of the largest at the start, if that is more), and expects no more
    decrease than the value itself; later the trust radius follows what was gained over what was
    predicted, and no step changes a hyperparameter by more than the scale of the start and of what
    has been travelled. A trial where the inner solver diverges is taken back and tried shorter.
    With noise it stops moving: take :class:`bilevel.outer.Auto`.

    A run ends with the best accepted point: ``result.hyper``. ``result.params`` and
    ``result.estimate`` are those of the last evaluation.

    Parameters
    ----------
    memory : number of curvature pairs; the state holds ``2 memory + 6`` vectors like ``hyper``.

    Raises
    ------
    ValueError : ``memory`` below 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> rule, x = bl.outer.LBFGS(), jnp.array([-1.0, 1.0])
    >>> state, value = rule.init(x), lambda x: jnp.sum(jnp.array([1.0, 9.0]) * x**2)
    >>> for _ in range(15):
    ...     step, state = rule.update(jax.grad(value)(x), state, x, value=value(x))
    ...     x = x + step
    >>> bool(rule.best(state, x, value(x))[1] < 1e-6)
    True
    """

    memory: int = 10

    def __post_init__(self) -> None:
        """Validate the number of curvature pairs."""
        require_positive_int("LBFGS", "memory", self.memory)

    def init(self, params: PyTree) -> TrustRegionState:
        """Return the state before the first evaluation."""
        return init_trust_region(ravel_pytree(params)[0], self.memory)

    def update(
        self,
        updates: PyTree,
        state: TrustRegionState,
        params: PyTree = None,
        *,
        value: float | Array | None = None,
        admit: Callable[[PyTree], PyTree] | None = None,
        **_: Any,
    ) -> tuple[PyTree, TrustRegionState]:
        """Go from the evaluation at ``params`` to the next trial."""
        x, slope, value, back = flatten("LBFGS", updates, params, value)
        state, _verdict = judge_trial(state, x, value, slope)
        following, state = propose_trial(state, flat_admit(admit, back))
        return back(following - x), state

    def best(self, state: TrustRegionState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """Return the best accepted point, or ``hyper`` where that is better; its value."""
        return best_point(state, hyper, value)

    def backtrack(
        self, before: TrustRegionState, after: TrustRegionState, hyper: PyTree
    ) -> tuple[TrustRegionState, Array]:
        """Return the state that proposes a quarter of the refused step, and whether it may."""
        return shorten_refused(before, jnp.linalg.norm(ravel_pytree(hyper)[0] - after.base))


register_node(LBFGS, data_fields=[], meta_fields=["memory"])
