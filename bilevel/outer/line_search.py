r"""Steepest descent with a line search on the value and an inner tolerance that falls.

    trial    x+ = x - t g,   e = e_k (|h(x)| + |x+ - x|)
    enough   h(x+) <= h(x) - t/2 |g|^2 + e     go on from x+, t <- 2 t
    lower    h(x+) <= h(x) + e                 go on from x+, t <- t m, m within [1/2, 1]
    else                                       back to x,     t <- t m, m within [1/10, 1/2]

where t m is the minimum of the parabola through both values and the slope at x, and
e_k = tolerance * decay^k, which is also what the estimator's tolerances are raised to. Pedregosa,
ICML 2016 (HOAG): the errors of value and hypergradient are O(e_k), so the test forgives as much.
His step shrinks by 2 and grows by 5 %, and his code never goes back.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Estimator
from bilevel.outer.base import flatten
from bilevel.outer.inner_tolerance import loosen_tolerances
from bilevel.outer.trust_region import first_fraction, max_coordinate_step
from bilevel.utils import PyTree, register_node, require_positive, require_tolerance

_GROW = 2.0
_REFUSALS = 6  # in a row


class LineSearchState(NamedTuple):
    """The state of the search between two evaluations.

    ``base``, the last accepted point, its ``value`` (infinite before the first) and ``slope``;
    where the run's ``start`` was; the next ``step``, the ``ceiling`` on it after refusals;
    ``evaluations`` so far; ``refusals`` in a row.
    """

    base: Array
    value: Array
    slope: Array
    start: Array
    step: Array
    ceiling: Array
    evaluations: Array
    refusals: Array


@dataclass(frozen=True)
class LineSearch:
    """Back-tracking on the outer value, for hypergradients without noise.

    One evaluation per outer step: a trial is accepted, or the next one is shorter. The first move
    changes no hyperparameter by more than 0.5 (or a quarter of the largest at the start), later
    ones by no more than the scale of the start and of what has been travelled. A trial where the
    inner solver diverges is taken back. :class:`bilevel.outer.LBFGS` needs fewer evaluations.

    Values of accepted points never rise by more than the tolerance of that moment allows. A run
    ends with the last accepted point, or with the last trial where its value is lower.

    Parameters
    ----------
    tolerance : relative accuracy of the first evaluation; 0 leaves the estimator as it is, and
        accepts nothing but decrease.
    decay : what it is multiplied by at each further evaluation. The estimator's own tolerances
        (``LBFGS(tol=)``, ``Newton(tol=)``, ``CG(tol=)``, ``Auto(tolerance=)``) are where it ends.

    Raises
    ------
    ValueError : a tolerance outside [0, 1), ``decay`` not positive or above 1.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Implicit(bl.LBFGS(tol=1e-8), steps=200, linear=bl.CG(tol=1e-8))
    >>> outer = bl.outer.LineSearch(tolerance=0.01, decay=0.9)  # tune(problem, estimator, outer...
    """

    tolerance: float | Array = 0.01
    decay: float | Array = 0.9

    def __post_init__(self) -> None:
        """Validate tolerance and decay."""
        require_tolerance("LineSearch", self.tolerance)
        require_positive("LineSearch", "decay", self.decay)
        if isinstance(self.decay, int | float) and self.decay > 1:
            raise ValueError(f"LineSearch: decay must be at most 1, got {self.decay}.")

    def init(self, params: PyTree) -> LineSearchState:
        """Return the state before the first evaluation."""
        flat = ravel_pytree(params)[0]
        infinite, zero = jnp.full((), jnp.inf, flat.dtype), jnp.zeros((), flat.dtype)
        none = jnp.zeros((), jnp.int32)
        return LineSearchState(
            flat, infinite, jnp.zeros_like(flat), flat, zero, infinite, none, none
        )

    def update(
        self,
        updates: PyTree,
        state: LineSearchState,
        params: PyTree = None,
        *,
        value: float | Array | None = None,
        **_: Any,
    ) -> tuple[PyTree, LineSearchState]:
        """Go from the evaluation at ``params`` to the next trial."""
        x, slope, value, back = flatten("LineSearch", updates, params, value)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
        value, slope = jnp.where(finite, value, jnp.inf), jnp.where(finite, slope, state.slope)
        first = jnp.isinf(state.value)
        known = jnp.where(first, value, state.value)
        length, before = jnp.linalg.norm(x - state.base), state.slope @ (x - state.base)
        change, size = jnp.where(finite, value - known, jnp.inf), jnp.abs(known)
        rounding = 8 * jnp.finfo(x.dtype).eps * size
        slack = self._tolerance(state.evaluations).astype(x.dtype) * (size + length) + rounding
        accepted = finite & (first | (change <= slack))
        enough = finite & (change <= before / 2 + slack)

        # The next step: what the slope suggests first, later a multiple of the last one.
        begun = first_fraction(x, value, slope, -slope)
        parabola = -before / (2 * jnp.maximum(change - before, jnp.finfo(x.dtype).tiny))
        least, most = jnp.where(accepted, 0.5, 0.1), jnp.where(accepted, 1.0, 0.5)
        times = jnp.where(enough, _GROW, jnp.clip(parabola, least, most)).astype(x.dtype)
        step = jnp.where(first, begun, times * state.step)
        base, slope = jnp.where(accepted, x, state.base), jnp.where(accepted, slope, state.slope)
        largest = jnp.max(jnp.abs(slope))
        allowed = max_coordinate_step(state.start, base) / jnp.where(largest > 0, largest, 1)
        step = jnp.minimum(jnp.minimum(step, allowed), state.ceiling)
        after = LineSearchState(
            base=base,
            value=jnp.where(accepted, value, state.value),
            slope=slope,
            start=state.start,
            step=step,
            ceiling=_GROW * state.ceiling,
            evaluations=state.evaluations + 1,
            refusals=jnp.zeros_like(state.refusals),
        )
        return back(base - step * slope - x), after

    def best(self, state: LineSearchState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """Return the last accepted point, or ``hyper`` where that is better; its value."""
        flat, back = ravel_pytree(hyper)
        better = value < state.value
        return back(jnp.where(better, flat, state.base)), jnp.where(better, value, state.value)

    def backtrack(
        self, before: LineSearchState, after: LineSearchState, hyper: PyTree
    ) -> tuple[LineSearchState, Array]:
        """Return the state that proposes a quarter of the refused step, and whether it may."""
        again = before._replace(ceiling=after.step / 4, refusals=before.refusals + 1)
        return again, again.refusals <= _REFUSALS

    def set_tolerance(self, estimator: Estimator, state: LineSearchState) -> Estimator:
        """Return the estimator as accurate as the next evaluation needs."""
        return loosen_tolerances(estimator, self._tolerance(state.evaluations))

    def _tolerance(self, count: Array) -> Array:
        """Return the tolerance of an evaluation by its number."""
        return jnp.asarray(self.tolerance) * jnp.asarray(self.decay) ** count


register_node(LineSearch, data_fields=["tolerance", "decay"], meta_fields=[])
