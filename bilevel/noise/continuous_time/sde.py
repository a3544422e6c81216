"""The modified equations at work: moments on quadratics, paths on any loss, exit times."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.noise import checks
from bilevel.noise.continuous_time.modified_equation import Coefficients, Model, require_valid
from bilevel.noise.quadratic.transient import MeanAndCovariance
from bilevel.utils import is_traced, require_positive_int, require_positive_scalars


class Linear(NamedTuple):
    """A linear SDE ``dY = diag(growth) Y dt + dB`` for ``Y = basis^T (X - w*)``.

    ``Cov(dB) = diffusion dt``.
    """

    basis: Array
    growth: Array
    diffusion: Array
    step_size: float | Array


def linear(model: Model, hessian: ArrayLike, noise: ArrayLike, step_size: float | Array) -> Linear:
    """Return the model on a quadratic of this Hessian, with constant noise; ``[d, d]`` both.

    Raises
    ------
    ValueError : the model does not exist here (``noise.modified_equation.validity``).
    """
    require_valid(model, hessian, noise, step_size)
    h, basis = jnp.linalg.eigh(jnp.asarray(hessian))
    u = step_size * h
    inner = step_size * (basis.T @ jnp.asarray(noise) @ basis)
    spread = model.spread(u[:, None], u[None, :])
    return Linear(basis, -h * model.pull(u), inner * spread, step_size)


def moments(
    sde: Linear, steps: float | Array, start: MeanAndCovariance | None = None
) -> MeanAndCovariance:
    r"""Return the exact mean ``[K, d]`` and covariance ``[K, d, d]`` at the times of SGD steps.

    In the basis ``mean = exp(g t) mean_0`` and, with ``s = g_i + g_j``,
    ``S_ij = exp(s t) S0_ij + Q_ij (exp(s t) - 1) / s``, at ``t = steps * step_size``.

    Parameters
    ----------
    sde : from :func:`linear`.
    steps : ``[K]``, which steps, in any order.
    start : moments of ``X_0``, measured from the minimum; ``None`` is the minimum itself.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> from bilevel.noise.continuous_time.modified_equation import HA_SME
    >>> equation = noise.sde.linear(HA_SME, jnp.eye(1), jnp.eye(1), 0.5)
    >>> steps = jnp.array([0, 1, 2, 200])
    >>> noise.sde.moments(equation, steps).covariance[:, 0, 0].round(4)  # as noise.transient.path
    Array([0.    , 0.25  , 0.3125, 0.3333], dtype=float32)
    """
    basis, growth = sde.basis, sde.growth
    mean, cov = (0 * growth, 0 * basis) if start is None else start
    t = jnp.asarray(steps, growth.dtype)[:, None, None] * sde.step_size
    y = (growth[:, None] + growth[None, :]) * t
    filled = t * jnp.where(y == 0, 1.0, jnp.expm1(y) / jnp.where(y == 0, 1.0, y))
    inner = jnp.exp(y) * (basis.T @ cov @ basis) + sde.diffusion * filled
    means = jnp.exp(growth * t[..., 0]) * (basis.T @ mean)
    return MeanAndCovariance(means @ basis.T, basis @ inner @ basis.T)


def stationary_covariance(sde: Linear) -> Array:
    """Return the covariance at which :func:`moments` ends, ``Q_ij / (-g_i - g_j)`` in the basis.

    Raises
    ------
    ValueError : a direction that does not fall back to the minimum.
    """
    checks.require_hessian("sde.stationary_covariance", jnp.diag(-sde.growth))
    pair = -(sde.growth[:, None] + sde.growth[None, :])
    return sde.basis @ (sde.diffusion / pair) @ sde.basis.T


def sample(
    local: Callable[[Array], Coefficients],
    start: Array,
    key: Array,
    step_size: float | Array,
    *,
    steps: int,
    substeps: int = 8,
) -> Array:
    """Return one path ``[steps + 1, d]`` at the times of SGD's steps, by Euler-Maruyama.

    Parameters
    ----------
    local : ``x [d] -> Coefficients``, such as ``coefficients`` of a model at ``jax.hessian(f)(x)``
        and ``jax.grad(f)(x)``. Where the model does not exist the path turns to NaN.
    start : ``[d]``. For many paths ``vmap`` over keys.
    step_size : ``eta``, the time of one SGD step; each is cut into ``substeps``, whose size sets
        the error of the integration (order 1 in the weak sense).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from bilevel import noise
    >>> from bilevel.noise.continuous_time.modified_equation import HA_SME, coefficients
    >>> H = C = jnp.eye(2)
    >>> local = lambda x: coefficients(HA_SME, H, H @ x, C, 0.5)
    >>> noise.sde.sample(local, jnp.ones(2), jax.random.key(0), 0.5, steps=5).shape
    (6, 2)
    """
    require_positive_int("sde.sample", "steps", steps)
    require_positive_int("sde.sample", "substeps", substeps)
    require_positive_scalars("sde.sample", step_size=step_size)
    dt = step_size / substeps

    def small_step(x: Array, key: Array) -> tuple[Array, None]:
        drift, diffusion = local(x)
        kick = _root(diffusion) @ jax.random.normal(key, x.shape, x.dtype)
        return x + dt * drift + jnp.sqrt(dt) * kick, None

    def step(x: Array, key: Array) -> tuple[Array, Array]:
        x, _ = jax.lax.scan(small_step, x, jax.random.split(key, substeps))
        return x, x

    _, rest = jax.lax.scan(step, start, jax.random.split(key, steps))
    return jnp.concatenate([start[None], rest])


def exit_steps(
    local: Callable[[Array], Coefficients],
    interval: tuple[float, float],
    start: ArrayLike,
    step_size: float | Array,
    *,
    nodes: int = 20001,
) -> Array:
    r"""Return the mean time of a path in one dimension out of an interval, in SGD steps.

    Like ``start``.

    The path is watched at all times, so that it leaves earlier than the discrete chain does
    (``noise.escape.first_passage_steps``), even where it has the law of SGD at every step. With the
    scale ``S = int exp(-int 2 b / a)`` and the speed ``2 / (a S')``,

        E t = P int_x^b (S(b) - S) 2 / (a S') + (1 - P) int_a^x (S - S(a)) 2 / (a S'),

    ``P = (S(x) - S(a)) / (S(b) - S(a))``, by the trapezium rule: relative error O(1 / nodes^2).

    Parameters
    ----------
    local : ``x [1] -> Coefficients``, as in :func:`sample`.
    interval, start : ``(a, b)``, and where to begin, any shape, inside it.

    Raises
    ------
    ValueError : a start outside the interval, a model that does not exist everywhere in it.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel import noise
    >>> from bilevel.noise.continuous_time.modified_equation import Coefficients
    >>> brownian = lambda x: Coefficients(0 * x, jnp.eye(1))
    >>> round(float(noise.sde.exit_steps(brownian, (-2.0, 2.0), 0.0, 0.5)), 2)  # R^2 / step_size
    8.0
    """
    owner = "sde.exit_steps"
    require_positive_scalars(owner, step_size=step_size)
    x0 = jnp.asarray(start, float)
    if not is_traced(x0) and not jnp.all((x0 >= interval[0]) & (x0 <= interval[1])):
        raise ValueError(f"{owner}: start must lie inside the interval {interval}, got {start}.")
    x = jnp.linspace(*interval, nodes, dtype=x0.dtype)
    at = jax.vmap(local)(x[:, None])
    drift, spread = at.drift[:, 0], at.diffusion[:, 0, 0]
    if not is_traced(spread) and not jnp.all(jnp.isfinite(drift) & (spread > 0)):
        raise ValueError(f"{owner}: the model does not exist everywhere in {interval}.")

    def integral(y: Array) -> Array:
        pieces = (y[1:] + y[:-1]) / 2 * (x[1] - x[0])
        return jnp.concatenate([jnp.zeros(1, y.dtype), jnp.cumsum(pieces)])

    well = integral(-2 * drift / spread)
    well = well - jnp.max(well)
    scale, speed = integral(jnp.exp(well)), 2 / spread * jnp.exp(-well)
    below, above = integral(scale * speed), integral((scale[-1] - scale) * speed)
    reached = scale / scale[-1]
    time = reached * (above[-1] - above) + (1 - reached) * below
    return jnp.interp(x0, x, time) / step_size


def _root(diffusion: Array) -> Array:
    """Return the symmetric square root; NaN for a matrix that is not positive semi-definite."""
    values, vectors = jnp.linalg.eigh(diffusion)
    rounding = 10 * values.shape[0] * jnp.finfo(values.dtype).eps * jnp.abs(values[-1])
    roots = jnp.sqrt(jnp.where(values < -rounding, jnp.nan, jnp.maximum(values, 0.0)))
    return (vectors * roots) @ vectors.T
