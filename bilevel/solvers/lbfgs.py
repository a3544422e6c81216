r"""L-BFGS with a line search that ensures the strong Wolfe conditions.

Liu, Nocedal, Mathematical Programming 1989; Nocedal, Wright, "Numerical Optimization", Algorithm
7.4 and section 3.5; Hager, Zhang, ACM TOMS 2006 (the decrease that rounding still lets one see).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Loss
from bilevel.solvers.wolfe import Point, Search, Vector, narrow_search
from bilevel.utils import (
    Counter,
    DataTree,
    Flag,
    Float,
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    Scalar,
    register_node,
    require_positive_int,
    require_tolerance,
)

_NO_DERIVATIVE = (
    "its line search stops by comparing numbers, so the derivative of its steps need not be that "
    "of the minimiser, even where the minimum is reached exactly"
)
_SEARCH = 30  # most evaluations of one line search
_FAILURES = 2  # without memory, then without success: at the rounding of the loss


class Pairs(NamedTuple):
    """Pairs ``s, y``, ``[memory, d]``, ``1 / s.y`` (0 for none), and how many were ``seen``."""

    s: Float[Array, "memory d"]
    y: Float[Array, "memory d"]
    rho: Float[Array, " memory"]
    seen: Counter


class LBFGSState(NamedTuple):
    """What a step begins with, so that it evaluates nothing twice.

    ``value`` and ``slope`` of the loss at params, unless ``stale``; ``scale``, the norm of the
    first gradient; ``failures`` in a row.
    """

    pairs: Pairs
    value: Scalar
    slope: Vector
    scale: Scalar
    failures: Counter
    stale: Flag


# One loop is a whole step of L-BFGS, because each call site of the loss is a copy of it to compile:
#
#   stale (a new hyper)        fresh: value and gradient at w are known
#          |                              |
#   evaluate at w -- begin -->  evaluate at w + t d  <--+
#                               narrow the bracket      |  Wolfe not met, trials left
#                                         |  -----------+
#                               accept w + t d, remember the pair; or fail
#
# `first` is the turn that only evaluates at w, `later` one that judges a trial; after
# either, `at` is the next trial. A fresh step enters at its first trial.
#
# Value at w, direction, gradient at w, where to evaluate next, search, whether w is not evaluated.
Turn: TypeAlias = tuple[Scalar, Vector, Vector, Vector, Search, Flag]


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS on all inner examples: no step size to choose; for ``Implicit``.

    A step costs one gradient, or more where the line search needs them; a call one more. Once no
    decrease can be seen in the current precision, or the gradient is small enough, further steps
    do nothing. Memory: ``2 memory + 2`` vectors like ``params``. Curvature pairs are kept from call
    to call; each belongs to one ``hyper``, so a change of it is not taken for curvature.

    Parameters
    ----------
    memory : number of curvature pairs.
    tol : stop where the gradient's norm is this fraction of what it was at the first start; 0 goes
        on down to rounding.

    Raises
    ------
    ValueError : ``memory`` below 1; an estimator that differentiates steps; ``Problem.prox``.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Implicit(bl.LBFGS(), steps=50, linear=bl.CG(tol=1e-8))
    """

    reads_loss: ClassVar[bool] = True

    memory: int = 10
    tol: Number = 0.0

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("LBFGS", "memory", self.memory)
        require_tolerance("LBFGS", self.tol)

    def why_not_unrolled(self, state: PyTree) -> str:
        """Return that the line search has no derivative."""
        return _NO_DERIVATIVE

    def stopped(self, state: LBFGSState) -> Flag:
        """Return whether the loss is at rounding, or the gradient is small."""
        small = jnp.linalg.norm(state.slope) <= self.tol * state.scale
        return (state.failures >= _FAILURES) | (small & ~state.stale)

    def init(self, params: Params, data: DataTree) -> LBFGSState:
        """Return a state without pairs; value and gradient are still to be evaluated."""
        flat, _ = ravel_pytree(params)
        rows = jnp.zeros((self.memory, flat.size), flat.dtype)
        zero, none = jnp.zeros((), flat.dtype), jnp.zeros((), jnp.int32)
        pairs = Pairs(rows, rows, rows[:, 0], none)
        return LBFGSState(pairs, zero, jnp.zeros_like(flat), zero, none, jnp.array(True))

    def refresh(self, state: LBFGSState) -> LBFGSState:
        """Return the same pairs; value and gradient to be evaluated with the new ``hyper``."""
        return state._replace(failures=jnp.zeros_like(state.failures), stale=jnp.array(True))

    def approximate_inverse(self, state: LBFGSState, v: Params) -> Params:
        """Return the inverse Hessian of the pairs times ``v``: linear, positive definite."""
        flat, unravel = ravel_pytree(v)
        length = jnp.linalg.norm(flat)
        scale = jnp.where(length > 0, length, 1)  # without pairs a step has length 1 at most
        return unravel(-scale * descent_direction(state.pairs, flat / scale))

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: LBFGSState,
    ) -> tuple[Params, LBFGSState]:
        """Make one line search along the quasi-Newton direction; the key is not used."""
        flat, unravel = ravel_pytree(params)

        def objective(w: Array) -> Array:
            return loss(unravel(w), hyper, data).astype(flat.dtype)

        moved, state = self._move(jax.value_and_grad(objective), flat, state)
        return unravel(moved), state

    def _move(
        self, evaluate: Callable[[Vector], tuple[Scalar, Vector]], w: Vector, state: LBFGSState
    ) -> tuple[Vector, LBFGSState]:
        """Take one step; ``evaluate`` has a single call site, which keeps the program small."""
        infinite, nothing = jnp.full((), jnp.inf, w.dtype), jnp.zeros((), w.dtype)

        def begin(value: Scalar, gradient: Vector) -> tuple[Vector, Search]:
            """Return the direction, and a search along it before its first trial."""
            d = descent_direction(state.pairs, gradient)
            slope = d @ gradient
            low = Point(nothing, value, slope)
            high = Point(infinite, infinite, infinite)
            one, none = jnp.ones((), w.dtype), jnp.zeros((), jnp.int32)
            return d, Search(one, low, high, value, gradient, jnp.array(False), none)

        def unfinished(carry: Turn) -> Flag:
            """Return whether w is still to be evaluated, or the search goes on."""
            *_, search, stale = carry
            return stale | (~search.found & (search.trials < _SEARCH) & (search.low.slope < 0))

        def advance(carry: Turn) -> Turn:
            """Evaluate at w or at the trial, and choose where to evaluate next."""
            value, d, gradient, at, search, stale = carry
            trial, slopes = evaluate(at)

            def first() -> tuple[Scalar, Vector, Vector, Search]:
                return trial, slopes, *begin(trial, slopes)

            def later() -> tuple[Scalar, Vector, Vector, Search]:
                narrowed = narrow_search(search, trial, slopes, d, value, d @ gradient)
                return value, gradient, d, narrowed

            value, gradient, d, search = jax.lax.cond(stale, first, later)
            return value, d, gradient, w + search.t * d, search, jnp.array(False)

        d, search = begin(state.value, state.slope)
        at = jnp.where(state.stale, w, w + d)
        carry = (state.value, d, state.slope, at, search, state.stale)
        value, d, gradient, _, search, _ = jax.lax.while_loop(unfinished, advance, carry)

        # A failed search drops the pairs: the next direction is the gradient, and a second failure
        # in a row says that the loss is at rounding.
        length = jnp.linalg.norm(gradient)
        scale = jnp.where(state.scale > 0, state.scale, length)
        success = search.found & jnp.any(search.t * d != 0)
        pairs = jax.tree.map(
            lambda new, none: jnp.where(success, new, none),
            remember_pair(state.pairs, search.t * d, search.gradient - gradient),
            state.pairs._replace(rho=jnp.zeros_like(state.pairs.rho)),
        )
        moved = LBFGSState(
            pairs,
            jnp.where(success, search.value, value),
            jnp.where(success, search.gradient, gradient),
            scale,
            jnp.where(success, 0, state.failures + 1),
            jnp.array(False),
        )
        return jnp.where(success, w + search.t * d, w), moved


register_node(LBFGS, data_fields=["tol"], meta_fields=["memory"])


def descent_direction(pairs: Pairs, gradient: Vector) -> Vector:
    """Return ``-H gradient`` by the two-loop recursion; without pairs, of length 1 at most."""
    memory = len(pairs.rho)
    order = (pairs.seen - 1 - jnp.arange(memory)) % memory  # newest first

    def down(q: Array, i: Array) -> tuple[Array, Array]:
        a = pairs.rho[i] * (pairs.s[i] @ q)
        return q - a * pairs.y[i], a

    def up(q: Vector, ia: tuple[Array, Array]) -> tuple[Vector, None]:
        i, a = ia
        return q + (a - pairs.rho[i] * (pairs.y[i] @ q)) * pairs.s[i], None

    q, a = jax.lax.scan(down, gradient, order)
    y, rho = pairs.y[order[0]], pairs.rho[order[0]]
    length = jnp.linalg.norm(gradient)
    first = jnp.where(length > 1, 1 / jnp.where(length > 1, length, 1), 1)
    scaled = jnp.where(rho > 0, 1 / jnp.where(rho > 0, rho * (y @ y), 1), first)
    return -jax.lax.scan(up, scaled * q, (order, a), reverse=True)[0]


def remember_pair(pairs: Pairs, s: Vector, y: Vector) -> Pairs:
    """Return the pairs with one more for the oldest; without positive curvature it is dropped."""
    curvature, i = s @ y, pairs.seen % len(pairs.rho)
    good = curvature > jnp.finfo(s.dtype).eps * (y @ y)
    rho = jnp.where(good, 1 / jnp.where(good, curvature, 1), 0)
    added = Pairs(
        pairs.s.at[i].set(s), pairs.y.at[i].set(y), pairs.rho.at[i].set(rho), pairs.seen + 1
    )
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), added, pairs)
