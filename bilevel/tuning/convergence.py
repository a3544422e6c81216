"""When a run has converged: the value stands, and what is known of the hypergradient is small."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevel.tuning.state import Columns, State, Step
from bilevel.utils import Number, PyTree, dtype, norm, register_node, require_tolerance

_WINDOW = 6  # values that must agree
_SLOPE = 10  # times tol: what a move by one unit of the coordinates may still promise
_TRUSTED = 0.5  # an error, relative to the hypergradient or to the largest one
DEFAULT = 1e-4


class ConvergenceState(NamedTuple):
    """What a run's convergence is judged by, part of its state.

    ``values``, ``[6]``, the latest; ``slope``, ``()``, the norm of the hypergradient in
    coordinates that exceeds its known error, smallest since the value last fell; ``largest``,
    ``()``, that of the largest hypergradient whose error was small; ``converged``.
    """

    values: Array
    slope: Array
    largest: Array
    converged: Array


@dataclass(frozen=True)
class Convergence:
    """Ends a run that has converged: :func:`bilevel.tune` makes it of ``tol``.

    It has when the values of the last six steps agree to ``tol`` of themselves and the
    hypergradient, in the coordinates of the space and less its known error, is below ``10 tol``
    of the value. The value is that of the best point, for a rule that tracks one: a trial
    that is rejected changes nothing. An error of more than half of the hypergradient, and of the
    largest of the run that was known, is no sign that it is small: such a run goes on.

    Parameters
    ----------
    tol : relative change of the value.

    Raises
    ------
    ValueError : ``tol`` outside [0, 1).

    Examples
    --------
    >>> import bilevel as bl
    >>> hook = bl.Convergence(tol=1e-5)
    """

    tol: Number = DEFAULT

    def __post_init__(self) -> None:
        """Validate the tolerance."""
        require_tolerance("Convergence", self.tol)

    def init(self, hyper: PyTree, params: PyTree) -> ConvergenceState:
        """Return that nothing is known."""
        kind = jnp.promote_types(dtype(hyper), dtype(params))
        worst = jnp.full((), jnp.inf, kind)
        values, none = jnp.full(_WINDOW, jnp.inf, kind), jnp.zeros((), kind)
        return ConvergenceState(values, worst, none, jnp.array(False))

    def update(self, memory: ConvergenceState, step: Step) -> ConvergenceState:
        """Return what is known after a step."""
        old = memory.values
        value = jnp.asarray(step.made.value if step.best is None else step.best, old.dtype)
        values = jnp.concatenate([old[1:], value[None]])
        error, length = jnp.nan_to_num(step.state.estimate.relative_error), norm(step.kept.grad)
        known = length * jnp.clip(1 - error, 0, 1)
        # Errors are as good as orthogonal to what they add to.
        exact = length / jnp.hypot(1.0, error)
        largest = jnp.maximum(memory.largest, jnp.where(error <= _TRUSTED, exact, 0))
        trusted = (error <= _TRUSTED) | (jnp.minimum(exact * error, length) <= _TRUSTED * largest)
        fallen = value < jnp.min(old)
        slope = jnp.where(fallen, known, jnp.minimum(memory.slope, known)).astype(old.dtype)
        size = jnp.abs(value)
        stands = jnp.max(values) - jnp.min(values) <= self.tol * size
        small = trusted & (slope <= _SLOPE * self.tol * size)
        converged = stands & small & jnp.all(jnp.isfinite(values))
        return ConvergenceState(values, slope, largest.astype(old.dtype), converged)

    def columns(self, memory: ConvergenceState, step: Step) -> Columns:
        """Return that it adds nothing."""
        del memory, step
        return {}

    def done(self, memory: ConvergenceState, begun: ConvergenceState) -> Array:
        """Return whether the run has converged."""
        del begun
        return memory.converged

    def has_converged(self, state: State) -> Array:
        """Return whether a run with this hook has converged; ``()``, boolean."""
        return state.memory[type(self).__name__].converged

    def explain(self, state: State) -> str:
        """Return the message of a run that has ended by this."""
        return (
            f"converged after {int(state.step)} outer steps: the last {_WINDOW} values agree to "
            f"tol={float(self.tol):.3g}, and the hypergradient is small."
        )


register_node(Convergence)
