r"""One number from all evidence, and the quantiles of an interval."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc, ndtri

from bilevel.utils import FloatTree, PyTree, norm, relative_size

_RESIDUALS = "inner", "linear", "derivative"
_HALVINGS = 60  # of an interval that holds a quantile: below the rounding of float64


@runtime_checkable
class KnownErrors(Protocol):
    """What of the evidence is looked at here, beside the residuals."""

    @property
    def bias(self) -> FloatTree:
        """``Evidence.bias``."""
        ...

    @property
    def residual_error(self) -> FloatTree:
        """``Evidence.residual_error``."""
        ...

    @property
    def known_noise(self) -> FloatTree:
        """``Evidence.known_noise``."""
        ...


def relative_error(grad: PyTree, evidence: KnownErrors) -> Array:
    r"""Return what is known of ``|grad - exact| / |exact|``, ``()``.

        sqrt(systematic^2 + noise^2),   systematic^2 = (|bias| / |grad - bias|)^2 + residual_error^2
        noise = |s| / sqrt(|grad - bias|^2 - |s|^2),   s the standard error of grad - bias

    Noise makes a gradient longer, ``E |grad|^2 = |E grad|^2 + |s|^2``, so its square is taken off;
    at most three quarters, where it hides the gradient anyway.

    An estimator that knows neither bias nor what its residuals stand for is taken at the largest of
    them, if one is of the derivative: how well the inner problem is solved says nothing of that.
    Infinite where the estimate is known to be worthless (a number that is not finite), NaN where
    nothing at all is known; ``estimate.unknown`` names what is missing.
    """
    parts, exact = [], norm(grad)
    if evidence.bias is not None:
        exact = norm(jax.tree.map(jnp.subtract, grad, evidence.bias))
        parts.append(relative_size(norm(evidence.bias), exact))
    if evidence.residual_error is not None:
        parts.append(evidence.residual_error)
    if not parts:
        inner, *others = (getattr(evidence, f"{name}_residual") for name in _RESIDUALS)
        if known := [residual for residual in others if residual is not None]:
            known += [] if inner is None else [inner]
            parts.append(jnp.max(jnp.stack(known)))
    if evidence.known_noise is not None:
        noise = norm(evidence.known_noise)
        # In units of the gradient, whose square may leave the range of the dtype.
        share = jnp.minimum(relative_size(noise, exact) ** 2, 0.75)
        parts.append(relative_size(noise, exact * jnp.sqrt(1 - share)))
    if not parts:
        inner = getattr(evidence, "inner_residual", None)
        solved = jnp.isfinite(exact if inner is None else exact + inner)
        return jnp.where(solved, jnp.nan, jnp.inf)
    total = norm([jnp.asarray(part, exact.dtype) for part in parts])
    return jnp.where(jnp.isfinite(total) & jnp.isfinite(exact), total, jnp.inf)


def student_quantile(level: float, freedom: Array | None) -> Array:
    """Return the two-sided quantile of Student's t; of the normal where ``freedom`` is None.

    It is ``t`` with ``P(|T| <= t) = level``, by bisection on ``P(|T| > t) = I_x(freedom / 2, 1 /
    2)``, ``x = freedom / (freedom + t^2)``.

    Raises
    ------
    ValueError : a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), for example 0.95, got {level}.")
    if freedom is None:
        return ndtri(jnp.asarray(0.5 + level / 2))
    freedom = jnp.asarray(freedom, jnp.result_type(float))

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        beyond = betainc(freedom / 2, 0.5, middle) > 1 - level  # then t is larger, x smaller
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    zero = jnp.zeros_like(freedom)
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (zero, zero + 1))
    x = (low + high) / 2
    return jnp.sqrt(freedom * (1 - x) / x)
