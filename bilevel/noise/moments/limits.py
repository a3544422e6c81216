r"""Where second moments end: stationary for a constant step, like 1/k for a decreasing one.

Constant step, plain SGD: ``(H P + P H) - eta [H P H + p (K(P) - H P H)] = eta p W``; in general
the fixed point of the process' own recursion, block by block, by conjugate gradients on
:mod:`bilevel.noise.feedback`'s equation, preconditioned by the exact solution without feedback.

Step ``gamma / (k + k0)``: ``k P_k -> S`` with
``(gamma C - 1/2) S + S (gamma C - 1/2)^T = gamma^2 p W``
as long as ``gamma`` times the smallest curvature exceeds 1/2: what the recursion leaves of
``P_k = S / k`` at order ``1 / k^2``.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.linear import CG
from bilevel.noise.moments import feedback
from bilevel.noise.moments.affine import Affine
from bilevel.noise.moments.rules import Rule, spread
from bilevel.utils import is_traced, resolve_renamed


class HasStationaryMoments(feedback.Multiplicative, Protocol):
    """A process whose stationary moments can be solved for block by block."""

    def stationary_moments(self, rule: Rule, solve: Callable[[Array], Array]) -> Any:
        """Return the stationary moments, given ``solve``.

        Source of a block -> the stationary block.
        """
        ...


def stationary(process: HasStationaryMoments, rule: Rule, max_steps: int = 500) -> Any:
    """Return the moments that ``process.step`` leaves as they are, for one rule (no leading axis).

    A handful of O(m n^2) products per block; their number grows towards the mean-square limit.

    Raises
    ------
    ValueError : an indefinite or singular Hessian; a step size beyond the mean-square limit.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import LeastSquares, limits, rules
    >>> process = LeastSquares.from_data(jnp.array([[1.0], [2.0]]), jnp.ones(2), batch_size=1)
    >>> end = limits.stationary(process, rules.sgd(0.2))
    >>> round(float(end.squared_error()), 5)  # 0.2 0.16 / (2 2.5 - 0.2 8.5)
    0.0097
    """
    response, kappa = feedback.require_stable("limits.stationary", process, rule)
    product, root = response.feedback(process, kappa), jnp.sqrt(kappa)
    solver = CG(4 * float(jnp.finfo(kappa.dtype).eps), max_steps)

    def solve(source: Array) -> Array:
        """Return the ``P`` with ``P = (mean step of P) + p L L^T (x) c(P_00) + source``."""
        source = response.rotate(source)
        alone = response.stationary_moment(source)[0, :, 0] / root
        found = solver.solve(lambda Y: Y - product(Y), alone, alone).x
        noise = response.fluctuation(process, root * found)
        return response.back(response.stationary_moment(source + spread(rule, noise)))

    return process.stationary_moments(rule, solve)


def inverse_time(process: Affine, gamma: float) -> Array:
    r"""Return ``lim k E[z z^T]`` under the step ``gamma / (k + k0)``, ``[d, d]``: no logarithm.

    ``z`` is the deviation from :meth:`Affine.fixed_point`; a dense solve of size d^2.

    Raises
    ------
    ValueError : ``gamma`` times the smallest curvature is not above 1/2, so that the error falls
        slower than 1/k.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import Affine, limits
    >>> process = Affine(jnp.ones((2, 1, 1)), jnp.array([[1.0], [-1.0]]), 1.0)  # a running mean
    >>> limits.inverse_time(process, 1.0)
    Array([[1.]], dtype=float32)
    """
    C, d = jnp.mean(process.matrices, 0), process.matrices.shape[1]
    if not is_traced(C):
        slowest = float(gamma) * np.linalg.eigvals(np.asarray(C)).real.min()
        if not slowest > 0.5:
            raise ValueError(
                f"limits.inverse_time: gamma={gamma:.6g} times the smallest curvature is "
                f"{slowest:.6g}, must be above 1/2: below, the start is forgotten slower than 1/k. "
                "Take gamma = 2 / (smallest curvature)."
            )
    each = process.matrices @ process.fixed_point() - process.offsets
    source = gamma**2 * process.factor * (each.T @ each) / len(each)
    shifted, eye = gamma * C - jnp.eye(d) / 2, jnp.eye(d)
    operator = jnp.kron(shifted, eye) + jnp.kron(eye, shifted)
    return jnp.linalg.solve(operator, source.reshape(-1)).reshape(d, d)


_RENAMED: dict[str, tuple[str, object]] = {
    "Settles": ("HasStationaryMoments", HasStationaryMoments),
}


def __getattr__(name: str) -> object:
    """Return what an old name stands for, with a warning."""
    return resolve_renamed(__name__, _RENAMED, name)
