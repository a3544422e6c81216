r"""The dense oracle: an inner problem solved to rounding, an adjoint solved by a dense matrix.

    grad = grad_h outer - C^T H^{-1} grad_w outer   at   w* = argmin_w inner(w, h)

Newton's method with the full Hessian in float64: slow, simple, and sharing no code with the
estimators that it judges. Compiled once per problem: eager, its Hessian alone would be a hundred
small programs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from bilevel.core import Data, Problem
from bilevel.utils import PyTree, as_float64, require_smooth, size

_MOST_PARAMS = 3000  # a dense Hessian of that size takes 72 MB and seconds
_MOST_STEPS = 200


def dense_hypergradient(
    problem: Problem, hyper: PyTree, params: PyTree, data: Data
) -> tuple[float, PyTree]:
    """Return value and hypergradient at the inner minimiser, exact to float64 rounding.

    Parameters
    ----------
    problem, hyper, data : as for :func:`bilevel.hypergradient`; converted to float64.
    params : where Newton's method starts; on a non-convex loss it picks the minimum.

    Returns
    -------
    ``(value, grad)`` : a float, and a tree like ``hyper`` of NumPy float64 arrays.

    Raises
    ------
    ValueError : more than 3000 inner parameters; a Hessian that is singular or indefinite where
        Newton's method ends; ``problem.start`` or ``problem.prox``.

    Examples
    --------
    >>> import numpy as np, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: ((w - x) ** 2).mean() / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: ((w - x) ** 2).mean() / 2,
    ... )
    >>> data = bl.Data(inner=np.array([2.0]), outer=np.array([1.5]))
    >>> value, grad = bl.testing.dense_hypergradient(problem, 1.0, 0.0, data)
    >>> value, float(grad)  # w* = 2 / (1 + h) = 1, (w* - 1.5) dw*/dh = 0.25
    (0.125, 0.25)
    """
    with jax.enable_x64(True):
        hyper, params, data = as_float64(hyper), as_float64(params), as_float64(data)
        w = _minimise(problem, hyper, params, data)
        value, grad = _adjoint(problem, w, params, hyper, data)
        return float(value), jax.tree.map(np.asarray, grad)


def dense_solution(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> PyTree:
    """Return the inner minimiser ``w*(hyper)`` to float64 rounding, a tree like ``params``.

    Arguments and errors are those of :func:`dense_hypergradient`.

    Examples
    --------
    >>> import numpy as np, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: ((w - x) ** 2).mean() / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: w,
    ... )
    >>> data = bl.Data(inner=np.array([2.0]), outer=np.zeros(1))
    >>> float(bl.testing.dense_solution(problem, 1.0, 0.0, data))
    1.0
    """
    with jax.enable_x64(True):
        params = as_float64(params)
        w = _minimise(problem, as_float64(hyper), params, as_float64(data))
        return jax.tree.map(np.asarray, ravel_pytree(params)[1](jnp.asarray(w)))


def dense_curvature(
    problem: Problem, hyper: PyTree, params: PyTree, data: Data
) -> tuple[float, float]:
    """Return the smallest and largest eigenvalue of the inner Hessian at the minimiser, in float64.

    Arguments and errors are those of :func:`dense_hypergradient`.

    Examples
    --------
    >>> import numpy as np, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: (w * w * np.array([1.0, 3.0])).sum() / 2 + h * w.sum(),
    ...     outer=lambda w, h, x: w.sum(),
    ... )
    >>> data = bl.Data(inner=np.zeros(1), outer=np.zeros(1))
    >>> bl.testing.dense_curvature(problem, 1.0, np.zeros(2), data)
    (1.0, 3.0)
    """
    with jax.enable_x64(True):
        hyper, params, data = as_float64(hyper), as_float64(params), as_float64(data)
        w = _minimise(problem, hyper, params, data)
        values = np.linalg.eigvalsh(_expansion(problem, w, params, hyper, data)[2])
        return float(values[0]), float(values[-1])


def _minimise(problem: Problem, hyper: PyTree, params: PyTree, data: Data) -> np.ndarray:
    """Return ``w*``, flat, by damped Newton steps from ``params``."""
    require_smooth("the dense oracle", problem)
    if size(params) > _MOST_PARAMS:
        raise ValueError(
            f"the dense oracle is for at most {_MOST_PARAMS} inner parameters, got {size(params)}. "
            "Shrink the problem, or use bl.check, which needs no dense Hessian."
        )
    w = np.asarray(ravel_pytree(params)[0])

    def loss(w: np.ndarray) -> float:
        return float(_loss(problem, w, params, hyper, data))

    def expand(w: np.ndarray) -> tuple[np.ndarray, ...]:
        return jax.tree.map(np.asarray, _expansion(problem, w, params, hyper, data))

    for _ in range(_MOST_STEPS):
        value, g, H = expand(w)
        if not (np.isfinite(value) and np.isfinite(g).all() and np.isfinite(H).all()):
            break
        direction = -np.linalg.solve(_definite(H), g)
        decrease = -float(g @ direction)
        if decrease <= 1e-20 * (1 + abs(value)):  # the last step squares what is left: rounding
            _require_definite(expand(w + direction)[2])
            return w + direction
        length = 1.0
        while length > 1e-12 and not loss(w + length * direction) <= (
            value - 1e-4 * length * decrease + 4e-16 * abs(value)
        ):
            length /= 2
        w = w + length * direction
    value, g, _ = expand(w)
    raise ValueError(
        f"the dense oracle found no inner minimum in {_MOST_STEPS} Newton steps (inner loss "
        f"{float(value):.4g}, gradient norm {np.linalg.norm(g):.4g}). Is the inner loss bounded "
        "below and twice differentiable? Start it near a minimum."
    )


@partial(jax.jit, static_argnames="problem")
def _loss(problem: Problem, w: ArrayLike, like: PyTree, hyper: PyTree, data: Data) -> Array:
    """Return the inner loss of the flat ``w``, whose structure is that of ``like``."""
    return problem.inner(ravel_pytree(like)[1](jnp.asarray(w)), hyper, data.inner)


@partial(jax.jit, static_argnames="problem")
def _expansion(
    problem: Problem, w: ArrayLike, like: PyTree, hyper: PyTree, data: Data
) -> tuple[Array, ...]:
    """Return value, gradient and Hessian of :func:`_loss`."""

    def loss(w: ArrayLike) -> Array:
        return _loss(problem, w, like, hyper, data)

    return *jax.value_and_grad(loss)(w), jax.hessian(loss)(w)


@partial(jax.jit, static_argnames="problem")
def _adjoint(
    problem: Problem, w: ArrayLike, like: PyTree, hyper: PyTree, data: Data
) -> tuple[Array, ...]:
    """Return ``(value, grad)`` at the minimiser ``w``."""

    def outer(w: ArrayLike, hyper: PyTree) -> Array:
        return problem.outer(ravel_pytree(like)[1](jnp.asarray(w)), hyper, data.outer)

    value, (b, direct) = jax.value_and_grad(outer, argnums=(0, 1))(w, hyper)
    adjoint = jnp.linalg.solve(jax.hessian(_loss, argnums=1)(problem, w, like, hyper, data), b)

    def slope(hyper: PyTree) -> Array:
        return jnp.vdot(jax.grad(_loss, argnums=1)(problem, w, like, hyper, data), adjoint)

    return value, jax.tree.map(jnp.subtract, direct, jax.grad(slope)(hyper))


def _definite(hessian: np.ndarray) -> np.ndarray:
    """Return the Hessian with its eigenvalues' moduli, so that Newton's step descends."""
    values, vectors = np.linalg.eigh(hessian)
    if values[0] > 1e-12 * abs(values[-1]):
        return hessian
    floor = max(1e-8 * np.abs(values).max(), np.finfo(float).tiny)
    return (vectors * np.maximum(np.abs(values), floor)) @ vectors.T


def _require_definite(hessian: np.ndarray) -> None:
    smallest, largest = np.linalg.eigvalsh(hessian)[[0, -1]]
    if not smallest > 1e-12 * abs(largest):
        raise ValueError(
            f"the inner Hessian is singular or indefinite at the solution (eigenvalues from "
            f"{smallest:.3g} to {largest:.3g}): the minimiser is not isolated there, so no "
            "hypergradient is defined. Add a penalty, or start Newton's method elsewhere."
        )
