r"""Means off quadratic problems: the curvature of the recursion moves them by O(step size).

    E z - z* ~ -C^{-1} (d^2 F / dz^2)[P] / 2,     E h(z) - h* ~ h'(E z - z*) + h''[P] / 2

for ``z = (x, D)``, ``F`` the mean joint gradient of :mod:`bilevel.noise.linearised`, ``P`` the
stationary second moment and ``h_j(z) = D_j . grad_x L(x) + dL/dtheta_j`` the hypergradient. The
first is a shift of the iterates' mean; the second adds what noise makes of a product, and of an
outer loss L that is not quadratic. Averaging the iterates removes neither the shift nor its
effect; Richardson's extrapolation over two step sizes removes both. Second-order Taylor expansion
of the stationarity condition (Dieuleveut, Durmus, Bach, 2020, for the shift of x).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.noise.hypergradients.error import HypergradientError
from bilevel.noise.moments import Linearised, joint_gradient
from bilevel.noise.per_example import FlatProblem
from bilevel.utils import PyTree


def mean_shift(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    linearised: Linearised,
    second: Array,
) -> Array:
    """Return how far from the solution the stationary mean of ``(x, D)`` is, to first order.

    ``-C^{-1} (d^2 F / dz^2)[P] / 2``, ``[d]``.

    Parameters
    ----------
    params : any, for their structure.
    linearised : the linearisation.
    second : its stationary second moment ``[d, d]``, slot 0.

    Examples
    --------
    >>> import jax, bilevel as bl
    >>> from bilevel.noise import bias, linearised, rules
    >>> case = bl.testing.logistic(seed=0)
    >>> @jax.jit
    ... def shift(*parts):
    ...     here = linearised.linearise(case.problem, *parts, batch_size=2)
    ...     second = here.process.stationary(rules.sgd(0.1)).second[0, :, 0]
    ...     return bias.mean_shift(case.problem, *parts, here, second)
    >>> shift(case.hyper, case.params, case.data).shape
    (8,)
    """
    flat = FlatProblem.from_problem("bias.mean_shift", problem, hyper, params, data)

    def whole(x: Array, theta: Array) -> Array:
        return flat.inner(x, theta, data.inner)

    field = partial(joint_gradient, whole, flat.theta, n=len(linearised.solution))
    third_order = _contract_second_derivative(field, _at(linearised), second)
    return -jnp.linalg.solve(jnp.mean(linearised.process.matrices, 0), third_order) / 2


def hypergradient_error(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    linearised: Linearised,
    second: Array,
    *,
    read: Array | None = None,
    drift: Array | float = 0.0,
    implicit: bool = False,
) -> HypergradientError:
    """Return the stationary bias and standard deviation of a hypergradient, to first order.

    ``h'(E z - z*) + h''[P] / 2`` and ``(h' P h'^T)^{1/2}``, entry by entry.

    Arguments as for :func:`mean_shift`; the outer loss may depend on hyper. ``value_bias`` is that
    of the outer loss itself. For the exact statement on quadratics, and for cross-sampling, see
    :mod:`bilevel.noise.hypergradient_error`.

    Parameters
    ----------
    read : the covariance ``[d, d]`` of the point that is read, where it is not an iterate but an
        average of iterates; the shift is that of the iterates either way.
    drift : ``[d]``, how far from the solution the mean of the linearised process is, which batches
        that depend on one another have (:mod:`bilevel.noise.shuffled`).
    implicit : the hypergradient is the implicit one at ``x``, ``dL/dtheta - (d grad / d theta)^T
        H(x)^{-1} grad_x L(x)``, whatever ``D`` is.
    """
    flat = FlatProblem.from_problem("bias.hypergradient_error", problem, hyper, params, data)
    shift = drift + mean_shift(problem, hyper, params, data, linearised, second)
    n, z = len(linearised.solution), _at(linearised)
    read = second if read is None else read

    def hypergradient(z: Array) -> Array:
        in_x, in_theta = jax.grad(flat.outer, (0, 1))(z[:n], flat.theta)
        D = _implicit_derivative(flat, z[:n]) if implicit else z[n:].reshape(-1, n)
        return D @ in_x + in_theta

    def value(z: Array) -> Array:
        return flat.outer(z[:n], flat.theta)

    def moved(fn: Callable[[Array], Array]) -> Array:
        return jax.jvp(fn, (z,), (shift,))[1] + _contract_second_derivative(fn, z, read) / 2

    slopes = jax.jacfwd(hypergradient)(z)
    variance = jnp.einsum("ia,ab,ib->i", slopes, read, slopes)
    return HypergradientError(
        hypergradient(z), moved(hypergradient), jnp.sqrt(jnp.maximum(variance, 0)), moved(value)
    )


def _implicit_derivative(flat: FlatProblem, x: Array) -> Array:
    """Return ``-(H(x)^{-1} d grad / d theta)^T``, ``[p, n]``."""
    in_x, in_theta = jax.jacfwd(flat.gradient, (0, 1))(x, flat.theta)
    return -jnp.linalg.solve(in_x, in_theta).T


def _at(linearised: Linearised) -> Array:
    return jnp.concatenate([linearised.solution, linearised.derivative.ravel()])


def _contract_second_derivative(fn: Callable[[Array], Array], z: Array, second: Array) -> Array:
    """Return ``fn''(z)[second]``, by the columns of a square root of ``second``."""
    values, vectors = jnp.linalg.eigh((second + second.T) / 2)
    columns = (vectors * jnp.sqrt(jnp.maximum(values, 0))).T

    def along(v: Array) -> Array:
        return jax.jvp(lambda z: jax.jvp(fn, (z,), (v,))[1], (z,), (v,))[1]

    return jnp.sum(jax.vmap(along)(columns), 0)
