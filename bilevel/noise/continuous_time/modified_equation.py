r"""Stochastic differential equations that stand in for SGD, and where each of them is exact.

With the Hessian ``H = U diag(h) U^T`` and the noise covariance ``C`` at ``x``, ``Ct = U^T C U``:

    dX = - U diag(pull(eta h)) U^T grad f dt + U sqrt(eta Ct o spread(eta h_i, eta h_j)) U^T dW

| model    | pull(u)             | spread(u, v)                              |
|----------|---------------------|-------------------------------------------|
| ``SME1`` | 1                   | 1                                         |
| ``SME2`` | 1 + u/2             | 1                                         |
| ``SPF``  | -log(1-u)/u         | 1                                         |
| ``HA_SME`` | -log(1-u)/u       | log z / (z-1), z = (1-u)(1-v)             |

On quadratics with Gaussian noise HA-SME has the law of SGD at every step ``t = k eta``, where it
exists (:func:`validity`). Correcting the drift alone (``SPF``) makes the stationary variance worse.
Exact at grid times is not exact between: it leaves a region earlier than SGD, see ``noise.escape``.

Sources: Li, Shen, Zhang, He, "A Hessian-aware stochastic differential equation for modelling SGD",
arXiv:2405.18373, for the model and its drift; the form of the diffusion and of the condition for
its existence are derived here. SME: Li, Tai, E (ICML 2017). SPF: principal flow, Rosca et al. 2023.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bilevel.linear import Matvec, function_product
from bilevel.utils import (
    is_traced,
    require_positive_scalars,
    require_same_size,
    require_semi_definite,
    require_symmetric,
)


class Model(NamedTuple):
    """A modified equation: its two functions of ``eta h``, and its name for messages."""

    name: str
    pull: Callable[[Array], Array]
    spread: Callable[[Array, Array], Array]


class Coefficients(NamedTuple):
    """The coefficients ``drift [d]`` and ``diffusion = D D^T [d, d]`` at one point."""

    drift: Array
    diffusion: Array


class Validity(NamedTuple):
    """Whether a model exists at a point, ``valid``, and the two numbers that decide it.

    ``product``: largest ``eta h``, to be below 1 for a logarithm. ``lowest``: lowest eigenvalue of
    the diffusion over its largest, to be non-negative.
    """

    valid: Array
    product: Array
    lowest: Array


def _one(u: Array) -> Array:
    return jnp.ones_like(u)


def _flat(u: Array, v: Array) -> Array:
    return jnp.ones_like(u * v)


def _second_order(u: Array) -> Array:
    return 1 + u / 2


def _logarithm(u: Array) -> Array:
    return jnp.where(u == 0, 1.0, -jnp.log1p(-u) / jnp.where(u == 0, 1.0, u))


def _aware(u: Array, v: Array) -> Array:
    w = jnp.log1p(-u) + jnp.log1p(-v)
    return jnp.where(w == 0, 1.0, w / jnp.where(w == 0, 1.0, jnp.expm1(w)))


SME1 = Model("SME-1", _one, _flat)
SME2 = Model("SME-2", _second_order, _flat)
SPF = Model("SPF", _logarithm, _flat)
HA_SME = Model("HA-SME", _logarithm, _aware)


def coefficients(
    model: Model,
    hessian: ArrayLike,
    gradient: ArrayLike,
    noise: ArrayLike,
    step_size: float | Array,
) -> Coefficients:
    """Return drift and diffusion at a point of this Hessian, gradient ``[d]`` and ``C``.

    Where the model does not exist the result is NaN (the drift) or not positive semi-definite (the
    diffusion), so that it can be traced along a path; ask :func:`validity` first.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import modified_equation as me
    >>> c = me.coefficients(me.HA_SME, jnp.eye(1), jnp.ones(1), jnp.eye(1), 0.5)
    >>> round(float(c.drift[0]), 4), round(float(c.diffusion[0, 0]), 4)  # -2 log 2, 4/3 log 2
    (-1.3863, 0.9242)
    """
    h, vectors = jnp.linalg.eigh(jnp.asarray(hessian))
    u = step_size * h
    drift = -vectors @ (model.pull(u) * (vectors.T @ jnp.asarray(gradient)))
    inner = step_size * (vectors.T @ jnp.asarray(noise) @ vectors)
    spread = model.spread(u[:, None], u[None, :])
    return Coefficients(drift, vectors @ (inner * spread) @ vectors.T)


def drift(
    model: Model, hvp: Matvec, gradient: Array, step_size: float | Array, steps: int = 20
) -> Array:
    """Return the drift ``[d]`` from Hessian-vector products alone, by ``steps`` of Lanczos.

    ``hvp`` maps ``[d]`` to ``[d]``. Curvatures at or above ``1 / eta`` that the gradient touches
    give NaN for the models with a logarithm; those that it does not touch go unnoticed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import modified_equation as me
    >>> h = jnp.array([0.2, 1.0])
    >>> me.drift(me.HA_SME, lambda v: h * v, jnp.ones(2), 0.5).round(4)
    Array([-1.0536, -1.3863], dtype=float32)
    """
    require_positive_scalars("modified_equation.drift", step_size=step_size)
    return function_product(lambda h: -model.pull(step_size * h), hvp, gradient, steps)


def validity(
    model: Model, hessian: ArrayLike, noise: ArrayLike, step_size: float | Array
) -> Validity:
    """Return whether the model exists here; see :class:`Validity`.

    HA-SME needs ``eta h < 1`` (beyond, SGD flips its sign at each step and no SDE does) and
    ``Ct o M`` positive semi-definite. That is automatic where ``C`` and ``H`` commute, and a real
    restriction elsewhere: rank-one noise off the eigenbasis never qualifies, at any step size.
    Negative curvature is fine. Below ``eta h`` of 1e-7 (float64) rounding hides the latter.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import modified_equation as me
    >>> H, rank_one = jnp.diag(jnp.array([0.1, 1.0])), jnp.ones((2, 2))
    >>> [bool(me.validity(me.HA_SME, H, C, 0.5).valid) for C in (jnp.eye(2), rank_one)]
    [True, False]
    """
    owner = "modified_equation.validity"
    h, c = (
        require_symmetric(owner, "hessian", hessian),
        require_semi_definite(owner, "noise", noise),
    )
    require_same_size(owner, hessian=h, noise=c)
    require_positive_scalars(owner, step_size=step_size)
    size = h.shape[0]
    pulled, diffusion = coefficients(model, h, jnp.ones(size, h.dtype), c, step_size)
    finite = jnp.all(jnp.isfinite(pulled)) & jnp.all(jnp.isfinite(diffusion))
    spectrum = jnp.linalg.eigvalsh(jnp.where(finite, diffusion, 0.0))
    lowest = spectrum[0] / jnp.where(spectrum[-1] > 0, spectrum[-1], 1.0)
    definite = lowest >= -10 * size * jnp.finfo(h.dtype).eps
    product = step_size * jnp.linalg.eigvalsh(h)[-1]
    return Validity(finite & definite, product, jnp.where(finite, lowest, jnp.nan))


def require_valid(
    model: Model, hessian: ArrayLike, noise: ArrayLike, step_size: float | Array
) -> None:
    """Raise a ``ValueError`` that says why the model does not exist, if it does not."""
    found = validity(model, hessian, noise, step_size)
    if is_traced(found) or bool(found.valid):
        return
    if not float(found.product) < 1:
        reason = (
            f"step_size * curvature reaches {float(found.product):.4g} and must be below 1: beyond "
            "that SGD flips its sign at each step, which no stochastic differential equation does"
        )
    else:
        reason = (
            "its diffusion is not positive semi-definite (lowest over largest eigenvalue "
            f"{float(found.lowest):.3g}): the noise is too near to singular off the eigenbasis of "
            "the Hessian"
        )
    raise ValueError(
        f"{model.name} does not exist here: {reason}. noise.transient.path and "
        "noise.steady_state.covariance describe the discrete chain without this restriction."
    )
