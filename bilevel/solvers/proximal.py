r"""Proximal gradient descent and its accelerated form, for a smooth plus a non-smooth inner part.

    w <- prox_{step}(w - step grad smooth(w)),   prox_t(v) = argmin_u t nonsmooth(u) + |u - v|^2 / 2

Beck, Teboulle, SIAM J. Imaging Sciences 2009; the restart of O'Donoghue, Candes, Found. Comput.
Math. 2015. The derivative of the iterates converges as the iterates do once the support is found
(Bertrand et al., JMLR 2022; Mehmood, Ochs, 2025).
"""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp

from bilevel.core import Loss, Problem, Prox
from bilevel.solvers.steps import (
    SolverStepSize,
    StepCount,
    advance_count,
    apply_prox,
    as_step_size,
    evaluate_step_size,
    init_count,
    measure_limit,
    restart_count,
)
from bilevel.utils import (
    DataTree,
    Hyper,
    Key,
    Number,
    Params,
    Scalar,
    axpy,
    dtype,
    register_node,
    vdot,
)

MomentumState: TypeAlias = tuple[StepCount, Scalar, Params]  # count, t, the iterate before


@dataclass(frozen=True)
class ProximalGradient:
    r"""Proximal gradient descent (ISTA) on all inner examples; needs ``Problem.prox``.

    ``w <- prox(w - step_size grad(w), hyper, step_size)``.

    Parameters
    ----------
    step_size : a positive number, :class:`bilevel.Relative`, ``fn(count)`` or ``fn(count,
        hyper)``. Converges on a convex smooth part while its largest curvature L < 2 / step_size.

    Raises
    ------
    ValueError : a step size that is not positive; a problem without ``prox``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> def soft(w, h, step):
    ...     return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step * h, 0)
    >>> problem = bl.Problem(
    ...     lambda w, h, x: jnp.mean((w - x) ** 2) / 2, lambda w, h, x: w, prox=soft
    ... )
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> solver, key = bl.ProximalGradient(step_size=0.5), jax.random.key(0)
    >>> bl.solve(problem, solver, 0.5, jnp.array(0.0), data, key, steps=50).round(4)
    Array(1.5, dtype=float32)
    """

    step_size: SolverStepSize

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_step_size("ProximalGradient", self.step_size))

    def check(self, problem: Problem) -> None:
        """Validate the arguments."""
        require_prox(self, problem.prox)

    def init(self, params: Params, data: DataTree) -> StepCount:
        """Return the step count, 0."""
        return init_count(self.step_size, params)

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: StepCount
    ) -> StepCount:
        """Return the state with the stability limit of a relative step size."""
        return measure_limit(state, loss, params, hyper, data)

    def refresh(self, state: StepCount) -> StepCount:
        """Return the state to begin a call with: a learned schedule begins anew."""
        return restart_count(state, self.step_size)

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: StepCount,
    ) -> tuple[Params, StepCount]:
        """Take one forward-backward step over all of ``data``; the key is not used."""
        size = evaluate_step_size(self.step_size, state, hyper)
        return forward_backward(loss, params, hyper, data, size), advance_count(state)

    def max_curvature(self, hyper: Hyper, state: StepCount) -> Scalar:
        """Return ``2 / step_size``."""
        return 2 / evaluate_step_size(self.step_size, state, hyper)


@dataclass(frozen=True)
class FISTA:
    r"""Accelerated proximal gradient descent on all inner examples; needs ``Problem.prox``.

    ``y = w + (t - 1) / t' (w - w_before)``, ``w <- prox(y - step_size grad(y), hyper, step_size)``,
    ``t' = (1 + sqrt(1 + 4 t^2)) / 2``.

    Parameters
    ----------
    step_size : a positive number, :class:`bilevel.Relative`, ``fn(count)`` or ``fn(count,
        hyper)``; at most 1 / L.
    restart : begin the momentum again whenever it points uphill, which makes the convergence (of
        the iterate and of its derivative) geometric where the objective is strongly convex.

    Raises
    ------
    ValueError : a step size that is not positive; a problem without ``prox``.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.FISTA(step_size=0.1)
    FISTA(step_size=0.1, restart=True)
    """

    step_size: SolverStepSize
    restart: bool = True

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_step_size("FISTA", self.step_size))

    def check(self, problem: Problem) -> None:
        """Validate the arguments."""
        require_prox(self, problem.prox)

    def init(self, params: Params, data: DataTree) -> MomentumState:
        """Return ``(count, t, the iterate before)``."""
        return init_count(self.step_size, params), jnp.ones((), dtype(params)), params

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: MomentumState
    ) -> MomentumState:
        """Return the state with the limit of a relative step size as the momentum tends to 1."""
        count, t, before = state
        return measure_limit(count, loss, params, hyper, data, scale=2 / 3), t, before

    def refresh(self, state: MomentumState) -> MomentumState:
        """Return the state to begin a call with: a learned schedule begins anew."""
        return restart_count(state[0], self.step_size), *state[1:]

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: Key,
        state: MomentumState,
    ) -> tuple[Params, MomentumState]:
        """Extrapolate, then one forward-backward step; the key is not used."""
        count, t, before = state
        following = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        y = axpy((t - 1) / following, axpy(-1, before, params), params)
        moved = forward_backward(
            loss, y, hyper, data, evaluate_step_size(self.step_size, count, hyper)
        )
        if self.restart:
            uphill = vdot(axpy(-1, moved, y), axpy(-1, params, moved)) > 0
            following = jnp.where(uphill, 1, following)
        return moved, (advance_count(count), following, params)

    def max_curvature(self, hyper: Hyper, state: MomentumState) -> Scalar:
        """Return ``4 / (3 step_size)``, the limit as the momentum tends to 1."""
        return 4 / (3 * evaluate_step_size(self.step_size, state[0], hyper))


register_node(ProximalGradient)
register_node(FISTA, data_fields=["step_size"], meta_fields=["restart"])


def forward_backward(
    loss: Loss, params: Params, hyper: Hyper, data: DataTree, size: Number
) -> Params:
    """Take a gradient step of ``size`` on the smooth part, then the proximal map."""
    return apply_prox(loss, axpy(-size, jax.grad(loss)(params, hyper, data), params), hyper, size)


def require_prox(solver: object, prox: Prox | None) -> None:
    """Raise if there is no proximal part to apply."""
    if prox is None:
        raise ValueError(
            f"`{type(solver).__name__}` needs Problem.prox; this problem has none. Give it "
            "prox(params, hyper, step), or use GradientDescent or SGD(nesterov=True)."
        )
