"""Whether a run diverges, and in which variable: cheap at every check, exact when it matters.

At a check, sizes of the directions are compared with their largest in the first steps. Where one
has grown tenfold, and at calls 0, 1, 2, 4, 8, ... up to every so many calls, the inner gradient and
the residual of the second variable are measured on all data.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bilevel.core import Counts, Data, Estimate, Evidence, InnerState, Problem
from bilevel.estimators import inner_residual
from bilevel.utils import PyTree, all_finite, cond_without_select, norm

# ``(inner gradient at the params, what the second variable leaves, of what)`` on all data.
Residuals = Callable[[Problem, PyTree, InnerState, Data], tuple[PyTree, PyTree, PyTree]]

_BURN_IN = 4  # steps in which the scales are learned
_SUSPECT = 10  # growth that is looked into
_FOLLOW = 1.05  # growth per step of D_lambda and of the value that is never taken for divergence


class Watch(NamedTuple):
    """The last measurement, ``[4]``, and the scales of the first steps, ``[4]``, with growth.

    Vectors rather than numbers: a small step costs XLA as much as it has separate numbers.

    ``measured``: the residuals of params and second variable, relative to today's right-hand side;
    the largest right-hand side seen; the second variable's residual over that. ``scale``: of the
    sizes of the three directions and of the outer value. ``growth``, ``()``: the smaller of the
    growth of ``|D_lambda|`` and of the outer value. ``calls``, ``[2]``: at the last check, and when
    the next measurement is due.
    """

    measured: Array
    scale: Array
    growth: Array
    calls: Array

    @classmethod
    def zeros(cls, dtype: DTypeLike) -> "Watch":
        """Return the state before the first step."""
        four, none = jnp.zeros(4, dtype), jnp.zeros((), dtype)
        return cls(four, four, none, jnp.zeros(2, jnp.int32))

    @property
    def residual(self) -> Array:
        """The residual of the params."""
        return self.measured[0]

    @property
    def second(self) -> Array:
        """The residual of the second variable."""
        return self.measured[1]


def update_watch(
    watch: Watch,
    reference: Array,
    seen: Array,
    calls: Array,
    every: int,
    measure: Callable[[], tuple[Array, Array]],
) -> tuple[Watch, Array, Array]:
    """Return ``(watch, reference, measured)`` after call number ``calls``.

    ``seen``, ``[4]``: sizes of the three directions and the outer value; ``measure() -> (measured,
    reference)``.
    """
    old, (last, due) = watch.scale, watch.calls
    burning_in = calls < _BURN_IN
    growth = jnp.min(_ratio(seen, old)[2:])
    suspect = jnp.any((seen > _SUSPECT * old)[:2]) & ~burning_in
    # the first two: the largest, learned at first and when suspect; the others may grow a little
    follow = jnp.asarray(_FOLLOW, old.dtype) ** (calls - last)
    most = jnp.where(burning_in | (old == 0), seen, jnp.minimum(seen, follow * old))
    largest = jnp.where(burning_in | suspect, seen, old)
    scale = jnp.maximum(old, jnp.where(jnp.arange(4) < 2, largest, most))
    wanted = suspect | (calls >= due)
    measured, reference = cond_without_select(wanted, measure, (watch.measured, reference))
    due = jnp.where(wanted, calls + jnp.clip(calls, 1, every), due)
    growth = jnp.where(burning_in, 0, growth)
    return Watch(measured, scale, growth, jnp.stack([calls, due])), reference, wanted


def _ratio(size: Array, scale: Array) -> Array:
    """Return the ratio of two sizes, 0 for nothing."""
    return jnp.where(size == 0, 0, size / scale)


def relative_residuals(watch: Watch, residual: Array, left: Array, rhs: Array) -> Array:
    """Return ``measured``, ``[4]``: the params' residual, what is ``left`` of a right-hand side.

    The right-hand side's largest size is kept: a system that becomes easy is none that diverges.
    """
    dtype = watch.scale.dtype
    left, rhs = left.astype(dtype), rhs.astype(dtype)
    most = jnp.maximum(watch.measured[2], rhs)
    share = jnp.where(most > 0, left / most, 0)
    return jnp.stack([residual.astype(dtype), _ratio(left, rhs), most, share])


def find_diverged(
    names: tuple[str, str],
    watch: Watch,
    second: PyTree,
    estimate: Estimate,
    after: InnerState,
    limit: float | Array,
) -> dict[str, Array]:
    """Return whether each variable has left all bounds; of several the first is named.

    ``w`` counts as lost here only when it is not finite: :func:`bilevel.tune` judges it by the
    inner residual.
    """
    w_lost = ~all_finite(after.params)
    second_lost = ~all_finite(second) | (watch.measured[3] > limit)
    lam_lost = ~all_finite((estimate.grad, estimate.value)) | (watch.growth > limit)
    first, other = names
    return {
        first: w_lost,
        other: ~w_lost & second_lost,
        "lambda (hyper)": ~w_lost & ~second_lost & lam_lost,
    }


class Monitor(NamedTuple):
    """A monitor: what is measured on all data between two updates, how often, and at what cost.

    ``passes``: minibatches per pass of each level; a measurement costs ``cost`` for each of those
    of the first. ``every``: calls between two measurements, ``None`` for so many that they cost a
    twentieth of the oracle calls at most; ``updates``: those per call. ``second``: the key of the
    second variable in the memory; ``linear``: whether its residual is that of a linear system.
    """

    residuals: Residuals
    passes: Callable[[Data], tuple[int, ...]]
    cost: Counts
    every: int | None
    updates: int = 1
    second: str = "v"
    variables: tuple[str, str] = ("w (params)", "v (adjoint)")
    linear: bool = True

    def evidence(self, watch: Watch, counts: Counts) -> Evidence:
        """Return the evidence of the last measurement, with the counts of this call."""
        second = watch.second if self.linear else None
        return Evidence(watch.residual, second, counts=counts)

    def measure(
        self,
        problem: Problem,
        hyper: PyTree,
        before: InnerState,
        estimate: Estimate,
        after: InnerState,
        data: Data,
    ) -> tuple[Estimate, InnerState]:
        """Watch the directions, and measure on all data where that is due."""
        memory, passes = after.memory, self.passes(data)
        watch: Watch = memory["watch"]
        last = jnp.stack([norm(estimate.grad), jnp.abs(estimate.value)])
        seen = jnp.concatenate([memory["sizes"], last.astype(watch.scale.dtype)])

        def measure() -> tuple[Array, Array]:
            gradient, left, rhs = self.residuals(problem, hyper, after, data)
            residual, reference = inner_residual(
                problem, hyper, before.params, gradient, data, after.reference
            )
            return relative_residuals(watch, residual, norm(left), norm(rhs)), reference

        calls, every = memory["count"] // self.updates - 1, self.every or max(128, 20 * max(passes))
        watch, reference, measured = update_watch(
            watch, after.reference, seen, calls, every, measure
        )
        cost = jax.tree.map(lambda n: n * passes[0] * measured, self.cost)
        counts = jax.tree.map(jnp.add, estimate.evidence.counts, cost)
        memory = {**memory, "watch": watch}
        after = InnerState(after.params, after.solver_state, memory, reference)
        return Estimate(estimate.value, estimate.grad, self.evidence(watch, counts)), after
