r"""One-step differentiation: back-propagation through the last step, or the last few.

    grad = grad_h outer + sum_{j < last} t_j,   t_j = B^T (A^T)^j grad_w outer,
    A = d step / d w,   B = d step / d h

Bolte, Pauwels, Vaiter, "One-step differentiation of iterative algorithms", NeurIPS 2023. For a
contraction ``|A| <= rho`` the dropped terms sum to at most ``rho^last / (1 - rho) |B| |grad_w
outer|`` (theirs for ``last = 1``).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    InnerState,
    Problem,
    draw_outer,
    init_inner_state,
    inner_loss,
    note_outer_rows,
)
from bilevel.estimators.refusals import check_unrolled
from bilevel.estimators.remainder import adjoint_evidence
from bilevel.estimators.reverse import Reverse
from bilevel.solvers import (
    Carry,
    Solver,
    end_chain,
    run_steps,
    start_solver,
)
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    Scalar,
    norm,
    partition,
    register_node,
    require_positive_int,
    zeros_like,
)

_PROBE = 8  # steps over which the contraction is measured: the swing of momentum averages out


@dataclass(frozen=True)
class OneStep:
    """``Reverse(truncate=last)`` with a measurement of what the truncation drops.

    Right for solvers that converge superlinearly, where one step forgets the past; elsewhere look
    at the evidence. Up to 16 steps before the ``last`` ones are pulled back too, not for the
    gradient but to see what it misses: the sum of their terms, and the rate ``rho`` at which the
    cotangent shrinks through the earlier half of them, by which the rest is extrapolated as a
    geometric series. ``evidence.bias`` is minus that sum, so that ``grad - bias`` is the better
    gradient; it is infinite where ``rho >= 1``: nothing then bounds what is dropped. With
    ``last = steps`` nothing is, and the bias is 0.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    last : how many of the last steps are differentiated.
    outer_batch_size : examples of the outer loss per call, drawn anew with replacement; ``None`` is
        all. Unbiased; its noise is in the standard error of :class:`Replicated` around it.

    Raises
    ------
    ValueError : ``steps`` or ``last`` out of range, a hyperparameter that nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.OneStep(bl.SGD(step_size=0.1, batch_size=32), steps=1000, last=5)
    """

    handles: ClassVar[tuple[str, ...]] = ("has_state", "has_aux", "stream")

    solver: Solver
    steps: int
    last: int = 1
    outer_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("OneStep", "steps", self.steps)
        require_positive_int("OneStep", "last", self.last)
        if self.last > self.steps:
            raise ValueError(f"OneStep: last={self.last} is more than steps={self.steps}.")

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the chain's start point; nothing else is carried."""
        return init_inner_state(params, self.solver.init(params, data.inner))

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Run the chain, pull back through its last steps, then on through the probe."""
        if self.last == self.steps:
            whole = Reverse(self.solver, self.steps, outer_batch_size=self.outer_batch_size)
            estimate, lower = whole.step(problem, hyper, lower, data, key)
            evidence = replace(estimate.evidence, bias=zeros_like(estimate.grad))
            return replace(estimate, evidence=evidence), lower
        data = draw_outer(data, self.outer_batch_size, key)
        check_unrolled("OneStep", problem, self.solver, hyper, lower, data, key)
        dropped = self.steps - self.last
        near, far = min(_PROBE, (dropped + 1) // 2), min(_PROBE, dropped // 2)
        before, _ = carry = start_solver(problem, self.solver, hyper, lower, data)
        loss = inner_loss(problem)

        def advance(k: int, n: int, hyper: Hyper, carry: Carry) -> Carry:
            return run_steps(loss, self.solver, hyper, carry, data, key, steps=n, first=k)

        # From the end: `last` steps that are kept, `near` and `far` of the probe, those only run.
        carry = advance(0, dropped - near - far, hyper, carry)
        moving, fixed, merge = partition(carry)

        def pullable(k: int, n: int, moving: list[Array], fixed: list[Array]) -> tuple:
            def segment(moving: list[Array], hyper: Hyper) -> tuple[list, list]:
                return partition(advance(k, n, hyper, merge(moving, fixed)))[:2]

            return jax.vjp(segment, moving, hyper, has_aux=True)

        def kept(moving: list[Array], hyper: Hyper) -> tuple[Scalar, Carry]:
            end = advance(dropped, self.last, hyper, merge(moving, fixed))
            return end_chain(problem, hyper, end, data).value(hyper), end

        moving, pull_far, fixed = pullable(dropped - near - far, far, moving, fixed)
        moving, pull_near, fixed = pullable(dropped - near, near, moving, fixed)
        both = jax.value_and_grad(kept, argnums=(0, 1), has_aux=True)
        (value, (params, state)), (cotangent, grad) = both(moving, hyper)
        middle, near_terms = pull_near(cotangent)
        oldest, far_terms = pull_far(middle)
        end = end_chain(problem, hyper, (params, state), data)
        evidence, reference = adjoint_evidence(
            end.problem,
            hyper,
            before,
            params,
            data,
            key,
            lower.reference,
            cotangent,
            jax.grad(end.problem.outer)(params, hyper, data.outer),
            grad,
            solver=self.solver,
            passes=self.steps + 3 * (self.last + near + far),
            whole=False,
        )
        made = {"gradients": self.steps + 1, "vjps": self.last + near + far}
        counts = Counts.of(**made, hvps=evidence.counts.hvps)
        bias = _tail(near_terms, far_terms, norm(oldest), norm(middle))
        evidence = replace(evidence, bias=bias, counts=counts)
        evidence = note_outer_rows(evidence, self.outer_batch_size)
        return Estimate(value, grad, evidence, end.aux), InnerState(params, state, None, reference)


register_node(OneStep, data_fields=["solver"], meta_fields=["steps", "last", "outer_batch_size"])


def _tail(near: Hyper, far: Hyper, new: Scalar, old: Scalar) -> Hyper:
    """Return ``-(near + sum_j (new / old)^j far)``; infinite where the series is."""
    shrink = jnp.where(new == 0, 0, new / old)

    def total(n: Array, f: Array) -> Array:
        unbounded = jnp.where(f == 0, 0, jnp.sign(f) * jnp.inf)
        rest = jnp.where(shrink < 1, f / (1 - shrink), unbounded)
        return -(n + rest).astype(n.dtype)

    return jax.tree.map(total, near, far)
