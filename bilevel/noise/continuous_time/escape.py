r"""How many steps SGD takes to leave: saddles, barriers, trust regions; in one dimension.

What the established formulas get wrong at finite step sizes, measured against exact discrete
first-passage times (:func:`first_passage_steps`):

* Kramers' formula with the plug-in :func:`effective_temperature` is **right** where the exit lies
  on the slope of a quadratic (a cusp, the radius of a trust region, clipping), and **wrong** at a
  smooth barrier, where it underestimates the time up to tenfold. The quasi-potential is
  ``2 / (eta s^2) [f - (eta/4) f'^2] + O(eta^2)`` (:func:`quasi_potential`), and at a saddle
  ``f' = 0``: the exponent stays that of continuous time, nearly.
* A modified SDE that is exact at grid times, watched continuously, exits **earlier** than SGD (by
  factors from 0.9 to 0.04). For exit times of SGD use the discrete chain.
* Where the noise is proportional to the loss (squared loss with little label noise) the rate is a
  power of the ratio of the losses at saddle and minimum (Mori et al. 2022): no formula here, which
  all take the noise near the exit as constant, applies; :func:`first_passage_steps` does, with a
  ``spread`` that depends on ``x``.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import erfc, ndtr
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.utils import require_below, require_positive_scalars

_MOST_NODES = 6000  # a solve of that size takes seconds
_PER_WIDTH = 3.0  # nodes per standard deviation of a step: spectral accuracy, with a margin
_HALF_LN2_PLUS_GAMMA = 0.6351814227307391  # E[-log |Z|], Z standard normal


def effective_temperature(
    curvature: float | Array, noise_variance: float | Array, step_size: float | Array
) -> Array:
    """Return ``T = k Var(w) = lam s^2 / (2 - lam k)`` at a quadratic minimum; ``()``.

    Continuous time says ``lam s^2 / 2``. Do not insert it into Kramers' formula for a smooth
    barrier; see the top of this module.

    Raises
    ------
    ValueError : ``lam k`` at or above 2, or an argument that is not positive.
    """
    owner = "escape.effective_temperature"
    require_positive_scalars(
        owner, curvature=curvature, noise_variance=noise_variance, step_size=step_size
    )
    checks.below_limit(owner, step_size * curvature, 2.0, "step_size * curvature")
    return jnp.asarray(step_size * noise_variance / (2 - step_size * curvature))


def quasi_potential(
    loss: float | Array,
    slope: float | Array,
    noise_variance: float | Array,
    step_size: float | Array,
) -> Array:
    """Return ``2 / (eta s^2) [f - (eta/4) f'^2]``, the exponent of the stationary density.

    Like ``loss``.

    Exact for HA-SME with constant noise, and for SGD up to ``O(eta^2)``. Differences between the
    exit and the minimum are exponents of escape times.
    """
    f, g = jnp.asarray(loss), jnp.asarray(slope)
    return 2 / (step_size * noise_variance) * (f - step_size / 4 * g**2)


def saddle_exit_steps(
    curvature: float | Array,
    noise_variance: float | Array,
    step_size: float | Array,
    radius: float | Array,
) -> Array:
    r"""Return the mean steps to distance ``radius`` from a saddle, started on it; ``()``.

    ``[log(radius / sd) + 0.635] / log(1 + eta g) + 1/2``, ``sd^2 = eta^2 s^2 / ((1+eta g)^2 - 1)``:
    the time at which the growing amplitude crosses (0.635 is ``E[-log |Z|]``), and half a step to
    the next whole one. Within 0.07 steps of the discrete chain from ``radius = 9 sd`` on. SME-1,
    with ``eta g`` for the logarithm, is early: 10.5 steps for 13.7 at ``eta g = 0.5``.

    Parameters
    ----------
    curvature : ``g > 0``, minus the negative eigenvalue of the Hessian.
    noise_variance : ``s^2`` of the gradient noise along its direction.
    step_size, radius : ``eta``; the distance within which the loss is quadratic.

    Raises
    ------
    ValueError : a radius that one step of noise already covers (``radius <= 3 sd``).

    Examples
    --------
    >>> from bilevel import noise
    >>> round(float(noise.escape.saddle_exit_steps(0.5, 1.0, 1.0, 100.0)), 1)
    13.7
    """
    owner = "escape.saddle_exit_steps"
    require_positive_scalars(owner, curvature=curvature, noise_variance=noise_variance)
    require_positive_scalars(owner, step_size=step_size, radius=radius)
    growth = jnp.log1p(step_size * curvature)
    sd = step_size * jnp.sqrt(noise_variance / jnp.expm1(2 * growth))
    what = "3 sd / radius (a radius that noise alone covers at once)"
    require_below(owner, 3 * sd / radius, 1.0, what, "Use first_passage_steps.")
    return (jnp.log(radius / sd) + _HALF_LN2_PLUS_GAMMA) / growth + 0.5


def independent_exit_steps(
    curvature: float | Array,
    noise_variance: float | Array,
    step_size: float | Array,
    radius: float | Array,
) -> Array:
    """Return the mean steps to exit ``|w| > radius`` of a quadratic, for ``eta k`` near 1; ``()``.

    ``1 / P(|Z| > radius / sqrt(Var w))``: the iterates are then almost independent draws from the
    stationary law. At ``eta k = 0.9`` within 0.4 %; the further from 1, the more it is too short.

    Raises
    ------
    ValueError : ``eta k`` outside (0.8, 1.2), where the draws are not independent.

    Examples
    --------
    >>> from bilevel import noise
    >>> round(float(noise.escape.independent_exit_steps(1.0, 1.0, 1.0, 2.0)), 2)
    21.98
    """
    owner = "escape.independent_exit_steps"
    require_positive_scalars(owner, radius=radius)
    temperature = effective_temperature(curvature, noise_variance, step_size)
    distance = jnp.abs(step_size * curvature - 1)
    what = "|step_size * curvature - 1| (the correlation of successive iterates)"
    require_below(owner, distance, 0.2, what, "Use first_passage_steps.")
    ratio = radius / jnp.sqrt(temperature / curvature)
    return 1 / erfc(ratio / jnp.sqrt(2.0))


def first_passage_steps(
    mean: Callable[[Array], Array],
    spread: Callable[[Array], Array] | float,
    interval: tuple[float, float],
    start: ArrayLike,
    nodes: int | None = None,
) -> Array:
    r"""Return the mean number of steps of ``x <- mean(x) + spread z`` until it leaves.

    Exact, like ``start``.

    ``m(x) = 1 + int_a^b N(y; mean(x), spread^2) m(y) dy``, solved by Nystroem's method on
    Gauss-Legendre nodes. For SGD ``mean = lambda x: x - eta * grad(x)``, ``spread = eta * s``.
    The cost is that of a dense solve of size ``nodes``; the relative error is about ``eps m``, and
    times beyond ``1e-3 / eps`` are refused, so use float64.

    Parameters
    ----------
    mean : ``[n] -> [n]``, the step without noise.
    spread : its standard deviation: a number, or ``[n] -> [n]``.
    interval : ``(a, b)``, the region to leave.
    start : where to begin, any shape, inside the interval.
    nodes : quadrature nodes; ``None`` takes three per ``spread`` where they lie widest apart.

    Raises
    ------
    ValueError : a start outside the interval, nodes too wide apart for the spread, or a time that
        the precision cannot hold.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> m = noise.escape.first_passage_steps(lambda x: 0.0 * x, 1.0, (-2.0, 2.0), jnp.array(0.0))
    >>> round(float(m), 2)  # independent draws: 1 / P(|Z| > 2)
    21.98
    """
    owner = "escape.first_passage_steps"
    x0 = jnp.asarray(start, float)
    a, b = (float(end) for end in interval)
    if not (a < b and np.all((np.asarray(x0) >= a) & (np.asarray(x0) <= b))):
        raise ValueError(f"{owner}: start must lie inside the interval ({a}, {b}), got {start}.")

    def width(x: Array) -> Array:
        return spread(x) if callable(spread) else spread * jnp.ones_like(x)

    narrowest = float(jnp.min(width(jnp.linspace(a, b, 257))))
    require_positive_scalars(owner, spread=narrowest)
    nodes = _nodes(owner, (b - a) / narrowest, nodes)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    y = jnp.asarray((a + b) / 2 + (b - a) / 2 * points, x0.dtype)
    w = jnp.asarray((b - a) / 2 * weights, x0.dtype)

    def kernel(x: Array) -> Array:
        sd = width(x)[:, None]
        z = (y[None, :] - mean(x)[:, None]) / sd
        return jnp.exp(-(z**2) / 2) / (sd * jnp.sqrt(2 * jnp.pi)) * w

    inside, m, sd = kernel(y), mean(y), width(y)
    leaving = ndtr((a - m) / sd) + ndtr((m - b) / sd)
    # 1 = leaving + staying: written so, rounding of the quadrature is not divided by `leaving`.
    system = jnp.diag(leaving + inside.sum(1)) - inside
    times = jnp.linalg.solve(system, jnp.ones_like(y))
    longest, hold = float(jnp.max(jnp.abs(times))), 1e-3 / float(jnp.finfo(y.dtype).eps)
    if not longest < hold or float(jnp.min(times)) < 0:
        raise ValueError(
            f"{owner}: the time, about {longest:.2g} steps or more, is beyond what {y.dtype} can "
            f"hold ({hold:.2g}). Use float64, a smaller region or more noise."
        )
    return (1 + kernel(x0.reshape(-1)) @ times).reshape(x0.shape)


def _nodes(owner: str, widths: float, nodes: int | None) -> int:
    """Return the number of quadrature nodes, validated to be enough for the spread of a step."""
    # In hundreds, so that similar calls share one compilation.
    wanted = 100 * int(np.ceil((np.pi / 2 * _PER_WIDTH * widths + 20) / 100))
    if nodes is None and wanted > _MOST_NODES:
        raise ValueError(
            f"{owner}: a step is so small against the region that {wanted} nodes are needed, more "
            f"than {_MOST_NODES}. Shrink the region, or use a theory of small steps."
        )
    nodes = wanted if nodes is None else nodes
    if nodes < np.pi / 2 * widths:
        raise ValueError(
            f"{owner}: {nodes} nodes are too few for a region {widths:.4g} times as wide as the "
            f"spread of a step; {wanted} would do."
        )
    return nodes
