r"""One-step differentiation: back-propagation through the last step, or the last few.

    grad = grad_h outer + sum_{j<last} t_j,   t_j = B^T (A^T)^j grad_w outer,
    A = d step / d w,   B = d step / d h

Bolte, Pauwels, Vaiter, "One-step differentiation of iterative algorithms", NeurIPS 2023. For a
contraction ``|A| <= rho`` the dropped terms sum to at most ``rho^last / (1 - rho) |B| |grad_w
outer|`` (theirs for ``last = 1``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.estimate import Counts, Estimate, Evidence, Lower, begin
from bilevel.estimators.base import check_unrolled, progress
from bilevel.estimators.reverse import Reverse
from bilevel.messages import require_positive_int
from bilevel.mixed import mixed_mode
from bilevel.problem import Data, Loss, Problem, inner_loss
from bilevel.solvers.base import Solver, run, start
from bilevel.trees import PyTree, axpy, dtype, norm, partition, zeros_like

_POWERS = 16  # enough for the transient growth of momentum's non-normal map to wear off


@dataclass(frozen=True)
class OneStep:
    """``Reverse(truncate=last)`` with a measurement of what the truncation drops.

    Right for solvers that converge superlinearly, where one step forgets the past; elsewhere look
    at the evidence. The first dropped term ``t_last`` is computed, the others are taken to decay
    from it like ``rho^j``: ``evidence.bias = -t_last / (1 - rho)``, of which ``grad - bias`` is
    free. ``rho`` is the larger of two measurements at the first dropped step: how much it shrinks
    the cotangent, and how much its 16th power shrinks the displacement of the iterate. Both are
    bounds from below, so that many comparable slow modes make the bias an underestimate. It is
    infinite where ``rho >= 1``: the steps do not contract, and nothing bounds what is dropped.

    Parameters
    ----------
    solver, steps : the inner solver and its number of steps K per call.
    last : how many of the last steps are differentiated.

    Raises
    ------
    ValueError : ``steps`` or ``last`` out of range, a hyperparameter that nothing reads.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.OneStep(bl.SGD(step_size=0.1, batch_size=32), steps=1000, last=5)
    """

    solver: Solver
    steps: int
    last: int = 1

    def __post_init__(self) -> None:
        """Refuse counts out of range."""
        require_positive_int("OneStep", "steps", self.steps)
        require_positive_int("OneStep", "last", self.last)
        if self.last > self.steps:
            raise ValueError(f"OneStep: last={self.last} is more than steps={self.steps}.")

    def init(self, params: PyTree, data: Data) -> Lower:
        """The chain's start point; nothing else is carried."""
        return begin(params, self.solver.init(params, data.inner))

    def step(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """Run the chain, pull back through its last steps, and through one more to see its size."""
        if self.last == self.steps:
            whole = Reverse(self.solver, self.steps)
            estimate, lower = whole.step(problem, hyper, lower, data, key)
            evidence = replace(estimate.evidence, bias=zeros_like(estimate.grad))
            return replace(estimate, evidence=evidence), lower

        check_unrolled("OneStep", problem, self.solver, hyper, lower, data, key)
        before, _ = carry = start(problem, self.solver, hyper, lower, data)
        plain, mixed = inner_loss(problem), inner_loss(problem, mixed_mode(problem.inner))
        first = self.steps - self.last - 1

        def advance(loss: Loss, k: int, n: int, hyper: PyTree, carry: Any) -> Any:
            return run(loss, self.solver, hyper, carry, data, key, steps=n, first=k)

        carry = advance(plain, 0, first, hyper, carry) if first else carry
        moving, fixed, merge = partition(carry)

        def dropped(loss: Loss, moving: list, hyper: PyTree) -> tuple[list, list]:
            return partition(advance(loss, first, 1, hyper, merge(moving, fixed)))[:2]

        def kept(moving: list, hyper: PyTree, fixed: list) -> Any:
            carry = advance(mixed, first + 1, self.last, hyper, merge(moving, fixed))
            return problem.outer(carry[0], hyper, data.outer), carry

        after, pull, after_fixed = jax.vjp(partial(dropped, mixed), moving, hyper, has_aux=True)
        both = jax.value_and_grad(kept, argnums=(0, 1), has_aux=True)
        (value, (params, state)), (cotangent, grad) = both(after, hyper, after_fixed)
        earlier, term = pull(cotangent)
        _, tangent_map = jax.linearize(lambda m: dropped(plain, m, hyper)[0], moving)
        rate = jnp.maximum(
            _ratio(norm(earlier), norm(cotangent)), _decay(tangent_map, axpy(-1, moving, after))
        )

        bias = jax.tree.map(lambda t: _tail(t, rate), term)
        residual, reference = progress(problem, hyper, before, params, data, lower.reference)
        counts = Counts.of(gradients=self.steps + 2, vjps=self.last + 1, jvps=_POWERS)
        evidence = Evidence(residual, bias=bias, counts=counts)
        return Estimate(value, grad, evidence), Lower(params, state, None, reference)


jax.tree_util.register_dataclass(OneStep, data_fields=["solver"], meta_fields=["steps", "last"])


def _decay(tangent_map: Callable[[list], list], displacement: list) -> Array:
    """Geometric mean of what ``_POWERS`` applications multiply the norm by; ``()``."""

    def power(carry: Any, _: None) -> tuple[Any, None]:
        u, logarithm = carry
        size = norm(u)
        image = tangent_map(jax.tree.map(lambda x: jnp.where(size > 0, x / size, 0), u))
        return (image, logarithm + jnp.log(norm(image))), None

    zero = jnp.zeros((), dtype(displacement))
    (_, logarithm), _ = jax.lax.scan(power, (displacement, zero), length=_POWERS)
    return jnp.exp(logarithm / _POWERS)


def _ratio(new: Array, old: Array) -> Array:
    return jnp.where(new == 0, 0, new / old)


def _tail(term: Array, rate: Array) -> Array:
    """``-sum_j rate^j term``; infinite, with the sign of ``-term``, where the sum is."""
    unbounded = jnp.where(term == 0, 0, -jnp.sign(term) * jnp.inf)
    return jnp.where(rate < 1, -term / (1 - rate), unbounded).astype(term.dtype)
