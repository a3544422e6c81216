r"""Picard's iteration for equations: ``w <- w - mixing F(w)``, for a fixed point ``F = w - T(w)``.

With ``mixing = 1`` it is ``w <- T(w)``, the iteration of Banach's theorem; below 1 it is that of
Krasnoselskii and Mann.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bilevel.core import Loss, Problem
from bilevel.utils import (
    DataTree,
    Flag,
    Hyper,
    Key,
    Number,
    Params,
    Scalar,
    axpy,
    dtype,
    norm,
    register_node,
    require_positive,
    require_tolerance,
)

# The first residual's norm, 0 until measured, and whether to stop; nothing without a tolerance.
StopState = tuple[Scalar | Flag, ...]


@dataclass(frozen=True)
class Picard:
    r"""Fixed-point iteration ``w <- (1 - mixing) w + mixing T(w)`` on all inner data.

    Converges where the map contracts: by ``rho`` a step, the largest modulus of the eigenvalues of
    ``(1 - mixing) I + mixing dT/dw``, and the derivative of its iterates as fast. On
    ``Problem(optimality=F)`` it is ``w <- w - mixing F(w)``.

    Parameters
    ----------
    mixing : part of the map that is taken; below 1 it tames a map that oscillates.
    tol : stop where ``|F|`` is this fraction of what it was at the first start; ``None`` never
        stops. For ``Implicit``: a step that is not taken has no derivative.

    Raises
    ------
    ValueError : a problem with an inner loss; ``mixing`` not positive; with ``tol`` an estimator
        that differentiates steps.

    Examples
    --------
    >>> import bilevel as bl
    >>> estimator = bl.Implicit(bl.Picard(tol=1e-8), 200, linear=bl.GMRES(tol=1e-8))
    """

    mixing: Number = 1.0
    tol: Number | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive("Picard", "mixing", self.mixing)
        require_tolerance("Picard", self.tol)

    def check(self, problem: Problem) -> None:
        """Raise unless the problem is an equation."""
        require_equation("Picard", problem)

    def why_not_unrolled(self, state: StopState) -> str | None:
        """Return that steps may be left out, if there is a tolerance."""
        return None if self.tol is None else "with tol its last steps may do nothing"

    def stopped(self, state: StopState) -> Flag | None:
        """Return, with ``tol``, whether the last step found the equation solved."""
        return None if self.tol is None else state[1]

    def init(self, params: Params, data: DataTree) -> StopState:
        """Return the first residual's norm, 0 until measured, and whether to stop."""
        return () if self.tol is None else (jnp.zeros((), dtype(params)), jnp.array(False))

    def refresh(self, state: StopState) -> StopState:
        """Return a state that goes on, ``hyper`` having moved."""
        return () if self.tol is None else (state[0], jnp.array(False))

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: StopState
    ) -> tuple[Params, StopState]:
        """Apply the map once; the key is not used."""
        residual = jax.grad(loss)(params, hyper, data)
        if self.tol is not None:
            state = update_stop(self.tol, residual, state)
        return axpy(-self.mixing, residual, params), state


register_node(Picard)


def update_stop(tol: Number, residual: Params, state: StopState) -> StopState:
    """Return the state after a step that found this residual."""
    size = norm(residual)
    first = jnp.where(state[0] > 0, state[0], size)
    return first, size <= tol * first


def require_equation(name: str, problem: Problem) -> None:
    """Raise ``ValueError`` where the inner problem has a loss."""
    if not problem.is_equation:
        raise ValueError(
            f"{name} solves equations, and this problem has an inner loss. Give "
            "Problem(fixed_point=...) or Problem(optimality=...), or take GradientDescent."
        )
