r"""Anderson's mixing: the next iterate from the last few, so that their residuals cancel best.

    w <- sum_i a_i (w_i - mixing F(w_i)),   a = argmin_{sum a = 1} |sum_i a_i F(w_i)|^2

over the last ``memory`` iterates, all of them flat here. Anderson, J. ACM 1965; Walker, Ni, SIAM J.
Numer. Anal. 2011: on linear equations it is GMRES. The sum is kept at 1 by writing it in
differences to the newest, whose least squares are scaled and regularised by ``ridge``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Loss, Problem
from bilevel.solvers.picard import StopState, require_equation, update_stop
from bilevel.utils import (
    DataTree,
    Flag,
    Hyper,
    Key,
    Number,
    Params,
    dtype,
    register_node,
    require_positive,
    require_positive_int,
    require_tolerance,
    size,
)


class AndersonState(NamedTuple):
    """The last ``points`` and ``residuals``, ``[memory, size]``, their number, when to stop."""

    points: Array
    residuals: Array
    taken: Array
    stop: StopState


@dataclass(frozen=True)
class Anderson:
    r"""Anderson's mixing of the last ``memory`` fixed-point steps, on all inner data.

    Mostly far fewer steps than :class:`bilevel.Picard`, also where the map does not contract.

    Parameters
    ----------
    memory : iterates that are combined; each step solves least squares of one less.
    mixing : part of the map that is taken.
    ridge : regularisation of the least squares, relative to the residuals' squares.
    tol : stop where ``|F|`` is this fraction of what it was at the first start; ``None`` never
        stops.

    Raises
    ------
    ValueError : a problem with an inner loss; settings not positive; an estimator that
        differentiates steps (the combination is no smooth function of the iterates).

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Implicit(bl.Anderson(tol=1e-8), 100, linear=bl.GMRES(tol=1e-8))
    """

    memory: int = 5
    mixing: Number = 1.0
    ridge: Number = 1e-12
    tol: Number | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Anderson", "memory", self.memory)
        require_positive("Anderson", "mixing", self.mixing)
        require_positive("Anderson", "ridge", self.ridge)
        require_tolerance("Anderson", self.tol)

    def check(self, problem: Problem) -> None:
        """Raise unless the problem is an equation."""
        require_equation("Anderson", problem)

    def why_not_unrolled(self, state: AndersonState) -> str | None:
        """Return that the derivative of its steps is not the derivative of the solution."""
        return "the combination of its iterates is no smooth function of them"

    def stopped(self, state: AndersonState) -> Flag | None:
        """Return, with ``tol``, whether the last step found the equation solved."""
        return None if self.tol is None else state.stop[1]

    def init(self, params: Params, data: DataTree) -> AndersonState:
        """Return an empty memory."""
        none = jnp.zeros((self.memory, size(params)), dtype(params))
        stop = (jnp.zeros((), dtype(params)), jnp.array(False))
        return AndersonState(none, none, jnp.zeros((), jnp.int32), stop)

    def refresh(self, state: AndersonState) -> AndersonState:
        """Return an empty memory: its residuals are those of another ``hyper``."""
        stop = (state.stop[0], jnp.array(False))
        return state._replace(taken=jnp.zeros_like(state.taken), stop=stop)

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: AndersonState,
    ) -> tuple[Params, AndersonState]:
        """Combine the last steps with one from here; the key is not used."""
        gradient = jax.grad(loss)(params, hyper, data)
        (w, unravel), (f, _) = ravel_pytree(params), ravel_pytree(gradient)
        row = state.taken % self.memory
        points, residuals = state.points.at[row].set(w), state.residuals.at[row].set(f)
        # Rows that nothing has been written to yet are the newest itself: differences of 0.
        there = jnp.arange(self.memory)[:, None] <= state.taken
        changes, moves = jnp.where(there, residuals - f, 0), jnp.where(there, points - w, 0)
        weights = _least_squares(changes, f, self.ridge)
        mixed = w + weights @ moves - self.mixing * (f + weights @ changes)
        tol = jnp.zeros(()) if self.tol is None else self.tol
        stop = update_stop(tol, gradient, state.stop)
        return unravel(mixed), AndersonState(points, residuals, state.taken + 1, stop)


register_node(Anderson, data_fields=["mixing", "ridge", "tol"], meta_fields=["memory"])


def _least_squares(changes: Array, f: Array, ridge: Number) -> Array:
    """Return the weights that make ``f + weights @ changes`` smallest, ``[memory]``."""
    sizes = jnp.linalg.norm(changes, axis=1)
    unit = changes / jnp.where(sizes > 0, sizes, 1)[:, None]
    ridge = jnp.maximum(ridge, 10 * jnp.finfo(f.dtype).eps)
    gram = unit @ unit.T + ridge * jnp.eye(len(changes), dtype=f.dtype)
    # A row of zeros would make the system singular at a ridge of 0 only: its weight is 0.
    return -jnp.linalg.solve(gram, unit @ f) / jnp.where(sizes > 0, sizes, 1)
