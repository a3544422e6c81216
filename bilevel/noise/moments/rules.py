r"""What a step does with a gradient: plain SGD, momentum, and running averages, as one linear map.

Every affine method here moves ``s`` slots, of which slot 0 is the iterate ``w``:

    z_{k+1} = T_k z_k - L_k gradient(w_k),   T_k [s, s],  L_k [s]

The heavy ball adds the velocity as a slot, a tail average adds the average: both extend the state,
so that one recursion of second moments covers them, with no formula of their own.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bilevel.utils import is_traced, require_momentum


class Rule(NamedTuple):
    """A rule: ``transition`` T, ``[..., s, s]``, and ``gain`` L, ``[..., s]``.

    Leading axes count steps.
    """

    transition: Array
    gain: Array

    @property
    def slots(self) -> int:
        """Return the number s of vectors that the method keeps."""
        return self.gain.shape[-1]


def sgd(
    step_size: ArrayLike, momentum: float | Array | None = None, nesterov: bool = False
) -> Rule:
    r"""Return the rule of :class:`bilevel.SGD`, one step per entry of ``step_size``.

    Plain: ``w <- w - eta g``. Heavy ball: ``v <- mu v + g``, ``w <- w - eta v``, slots ``(w, v)``;
    Nesterov: ``w <- w - eta (g + mu v)`` with the new ``v``.

    Parameters
    ----------
    step_size : ``()`` for one rule, ``[K]`` for a schedule.
    momentum : ``None`` (one slot), or numbers that broadcast with ``step_size`` (two slots).

    Raises
    ------
    ValueError : a step size that is not positive, momentum outside [0, 1).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import rules
    >>> schedule = rules.sgd(0.1 / (1 + jnp.arange(50.0)), momentum=0.9)
    >>> schedule.transition.shape, schedule.gain.shape
    ((50, 2, 2), (50, 2))
    """
    if not is_traced(step_size) and not (np.asarray(step_size) > 0).all():
        raise ValueError(f"rules.sgd: every step size must be positive, got {step_size}.")
    require_momentum("rules.sgd", 0.0 if momentum is None else momentum)
    eta = jnp.asarray(step_size, jnp.result_type(step_size, float))
    if momentum is None:
        return Rule(jnp.ones((*eta.shape, 1, 1), eta.dtype), eta[..., None])
    eta, mu = jnp.broadcast_arrays(eta, jnp.asarray(momentum, eta.dtype))
    one, zero = jnp.ones_like(eta), jnp.zeros_like(eta)
    kept = mu**2 if nesterov else mu
    rows = [jnp.stack([one, -eta * kept], -1), jnp.stack([zero, mu], -1)]
    gain = jnp.stack([eta * (1 + mu) if nesterov else eta, -one], -1)
    return Rule(jnp.stack(rows, -2), gain)


def averaged(rule: Rule, weights: Array) -> Rule:
    r"""Return the same rule with one more slot, the last: ``S_{k+1} = S_k + weights_k w_{k+1}``.

    It begins at 0 (``slots`` of a process' start). Weights that sum to 1 make it an
    average: :func:`tail_weights` for Polyak-Ruppert averaging of the last iterates.

    Parameters
    ----------
    rule : leading axis ``[K]``.  weights : ``[K]``.

    Raises
    ------
    ValueError : weights whose shape is not the leading shape of the rule.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import rules
    >>> schedule = rules.sgd(0.1 * jnp.ones(100))
    >>> rules.averaged(schedule, rules.tail_weights(100, 20)).slots
    2
    """
    steps = rule.gain.shape[:-1]
    if jnp.shape(weights) != steps:
        raise ValueError(
            f"weights have shape {jnp.shape(weights)}, but the rule counts steps {steps}: one "
            "weight per step. Build the rule from step sizes of shape [steps]."
        )
    weights = jnp.asarray(weights, rule.gain.dtype)[..., None]
    below = jnp.concatenate([weights * rule.transition[..., 0, :], jnp.ones_like(weights)], -1)
    above = jnp.concatenate([rule.transition, jnp.zeros_like(rule.transition[..., :1])], -1)
    gain = jnp.concatenate([rule.gain, weights * rule.gain[..., :1]], -1)
    return Rule(jnp.concatenate([above, below[..., None, :]], -2), gain)


def tail_weights(steps: int, window: int) -> Array:
    """Return ``1 / window`` for the last ``window`` of ``steps`` steps, 0 before; ``[steps]``.

    The average that ``Forward(solver, steps, average=window)`` returns.
    """
    if not 1 <= window <= steps:
        raise ValueError(f"tail_weights: window={window} must lie between 1 and steps={steps}.")
    return jnp.where(jnp.arange(steps) < steps - window, 0.0, 1 / window)


def push_mean(rule: Rule, curvature: Array, Y: Array, coupling: float | Array = 0.0) -> Array:
    """Return the mean step on ``Y [s, n, ...]``: ``T Y - L (curvature Y[0] + coupling)``."""
    gradient = jnp.tensordot(curvature, Y[0], 1) + coupling
    gain = rule.gain.reshape(-1, *[1] * gradient.ndim)
    return jnp.tensordot(rule.transition, Y, 1) - gain * gradient


def spread(rule: Rule, covariance: Array) -> Array:
    """Return what gradient noise of this ``covariance [n, n]`` adds in one step.

    ``[s, n, s, n]``.
    """
    return jnp.einsum("a,ij,b->aibj", rule.gain, covariance, rule.gain)


def transpose_block(block: Array) -> Array:
    """Return ``E[y x^T]`` from ``E[x y^T]``, both ``[..., s, n, s, n]``."""
    return jnp.moveaxis(block, (-4, -3), (-2, -1))


def outer_product(x: Array, y: Array) -> Array:
    """Return ``x y^T`` of two slotted vectors ``[s, n]``: ``[s, n, s, n]``."""
    return jnp.tensordot(x, y, 0)
