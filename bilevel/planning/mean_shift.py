r"""By how much the stationary mean of SGD is off, without the Hessians of single examples.

To first order in the step size the stationary covariance of the iterates is ``eta p X`` with
``H X + X H = C``, ``C`` the covariance of the gradients of single examples at the solution, and
their mean is off by ``eta p s``, ``s = -H^{-1} grad tr(H X) / 2`` (third derivatives of the loss).
As the mean derivative is the derivative of the mean, the hypergradient of a long average is off by

    eta p d/d theta [grad outer(x*(theta), theta) . s(theta)],

here by central differences, the inner problem solved at each. One Hessian and one covariance at a
time: memory ``n^2 + m n``. Shift of the mean: Dieuleveut, Durmus, Bach, Annals of Statistics 2020.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Problem
from bilevel.noise import FlatProblem
from bilevel.planning.analysis import call_compiled
from bilevel.solvers import minimise

MOST_PARAMS = 1024  # a Hessian of this size is decomposed twice for each hyperparameter
_STEP = 1e-4  # of a central difference: its error of third order and rounding are both below 1e-6


class MeanShift(NamedTuple):
    """Over ``step size x noise fraction``: the ``bias [p]`` of a hypergradient.

    ``nonlinearity``, over the root of that product: the distance of the mean over the spread.
    """

    bias: np.ndarray
    nonlinearity: float


def measure_mean_shift(flat: FlatProblem) -> MeanShift:
    """Return the shift of the mean of an inner loss that is not quadratic.

    By ``2 p + 1`` solutions of the inner problem, ``flat.x`` the point to begin from.
    """
    theta = np.asarray(flat.theta)
    steps = np.diag(_STEP * (1 + np.abs(theta)))
    points = np.concatenate([theta[None], theta + steps, theta - steps])

    def read_all(points: Array) -> tuple[Array, Array]:
        return jax.lax.map(lambda theta: _read_shift(flat, theta), points)

    moved, relative = map(np.asarray, call_compiled(read_all, points))
    p = len(theta)
    change = (moved[1 : p + 1] - moved[p + 1 :]) / (2 * np.diag(steps))
    return MeanShift(change, float(relative[0]))


def _read_shift(flat: FlatProblem, theta: Array) -> tuple[Array, Array]:
    """Return ``grad outer . s`` and the distance of the mean over the spread, ``()`` each."""
    x = minimise(Problem(flat.inner, flat.inner), theta, flat.x, flat.data).params

    def hessian(x: Array) -> Array:
        H = jax.jacfwd(flat.gradient)(x, theta)
        return (H + H.T) / 2

    here = FlatProblem(flat.problem, flat.data, x, theta, flat.to_params, flat.to_hyper)
    rows = jnp.arange(flat.count)
    singles = here.map_examples(lambda loss: jax.grad(loss)(x, theta), rows, 256)
    h, U = jnp.linalg.eigh(hessian(x))
    apart = (singles - jnp.mean(singles, 0)) @ U
    X = U @ (apart.T @ apart / flat.count / (h[:, None] + h[None, :])) @ U.T
    third = jax.grad(lambda x: jnp.sum(hessian(x) * X))(x)
    shift = -U @ ((U.T @ third) / h) / 2
    spread = jnp.sum(apart**2) / flat.count / 2  # tr(H X)
    size = jnp.sqrt(jnp.sum(h * (U.T @ shift) ** 2) / spread)
    return jax.grad(flat.outer)(x, theta) @ shift, size
