r"""L-BFGS with a line search that ensures strong Wolfe conditions: direction and search by optax.

Liu, Nocedal, Mathematical Programming 1989; Nocedal, Wright, "Numerical Optimization", Algorithms
7.5, 3.5 and 3.6; Hager, Zhang, ACM TOMS 2006 (the decrease that rounding still lets one see).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bilevel.messages import require_positive_int
from bilevel.problem import Loss
from bilevel.trees import PyTree, axpy, vdot

NO_DERIVATIVE = (
    "its line search stops by comparing numbers, so the derivative of its steps need not be that "
    "of the minimiser, even where the minimum is reached exactly"
)
_SEARCH = 30  # most evaluations of one line search
_FAILURES = 2  # without memory, then without success: at the rounding of the loss


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS on all inner examples: no step size to choose; for ``Implicit``.

    A step costs two full gradients, or more where the line search needs them. Once no decrease can
    be seen in the current precision further steps do nothing. Memory: ``2 memory + 2`` trees like
    ``params``. When a new call brings a new ``hyper`` the last curvature pair is computed again,
    so that a change of the gradient by ``hyper`` is not taken for curvature.

    Parameters
    ----------
    memory : number of curvature pairs.

    Raises
    ------
    ValueError : ``memory`` below 1; an estimator that differentiates steps; ``Problem.prox``.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Implicit(bl.LBFGS(), steps=50, linear=bl.CG(tol=1e-8))
    """

    memory: int = 10

    def __post_init__(self) -> None:
        """Refuse an empty memory."""
        require_positive_int("LBFGS", "memory", self.memory)

    def why_not_unrolled(self, state: PyTree) -> str:
        """Its line search."""
        return NO_DERIVATIVE

    def init(self, params: PyTree, data: PyTree) -> Any:
        """``(curvature pairs, failures in a row, whether the last pair is of another hyper)``."""
        pairs = optax.scale_by_lbfgs(self.memory).init(params)
        return pairs, jnp.zeros((), jnp.int32), jnp.array(False)

    def refresh(self, state: Any) -> Any:
        """The same pairs, the last of them to be computed again."""
        pairs, failures, _ = state
        return pairs, jnp.zeros_like(failures), jnp.array(True)

    def step(
        self, loss: Loss, params: PyTree, hyper: PyTree, data: PyTree, key: Array, state: Any
    ) -> tuple[PyTree, Any]:
        """One line search along the quasi-Newton direction; the key is not used."""

        def objective(params: PyTree) -> Array:
            return loss(params, hyper, data)

        def search() -> tuple[PyTree, Any]:
            return self._search(objective, params, state)

        return jax.lax.cond(state[1] < _FAILURES, search, lambda: (params, state))

    def _search(self, objective: Any, params: PyTree, state: Any) -> tuple[PyTree, Any]:
        lbfgs, (pairs, failures, stale) = optax.scale_by_lbfgs(self.memory), state
        value, gradient = jax.value_and_grad(objective)(params)
        before = jax.lax.cond(
            stale, lambda: jax.grad(objective)(pairs.params), lambda: pairs.updates
        )
        updated: Any = lbfgs.update(gradient, pairs._replace(updates=before), params)
        direction, pairs = updated
        descent = jax.tree.map(lambda d, w: -d.astype(w.dtype), direction, params)

        zoom = optax.scale_by_zoom_linesearch(_SEARCH, initial_guess_strategy="one")
        searched: Any = zoom.update(
            descent, zoom.init(params), params, value=value, grad=gradient, value_fn=objective
        )
        move, found = searched
        rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        success = (vdot(descent, gradient) < 0) & (vdot(move, move) > 0)
        success &= found.value <= value + rounding

        def select(good: PyTree, bad: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: jnp.where(success, x, y).astype(y.dtype), good, bad)

        params, pairs = select((axpy(1, move, params), pairs), (params, lbfgs.init(params)))
        return params, (pairs, jnp.where(success, 0, failures + 1), jnp.array(False))


jax.tree_util.register_dataclass(LBFGS, data_fields=[], meta_fields=["memory"])
