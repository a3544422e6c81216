r"""What noise in the iterates does to a hypergradient: its exact bias, its standard deviation.

For an outer loss that is quadratic, with gradient ``l`` and Hessian ``Q`` at the solution, the
hypergradient ``D^T grad(x)`` of a run has, with ``u = x - x*`` and ``E = D - D*``,

    mean - D*^T l = Ebar^T l + D*^T Q ubar + <Q, E[u E^T]>

from second moments alone. The last term is O(step size) and stays although the stationary ``x`` and
``D`` are each unbiased: they share their minibatches. With ``x`` in ``grad(x)`` from an independent
run (``Forward(..., cross=True)``) it is ``Ebar^T Q ubar``, 0 at stationarity. The standard
deviation is the delta method's: linear in ``(u, E)`` around their means, which leaves out
fourth-order noise; under cross-sampling it is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.noise.moments import JointMoments, require_shape


class HypergradientError(NamedTuple):
    """The error of a hypergradient.

    ``exact``, ``bias``, ``standard_deviation [p]``, ``value_bias ()``.
    """

    exact: Array
    bias: Array
    standard_deviation: Array
    value_bias: Array


def predict(
    moments: JointMoments,
    derivative: Array,
    gradient: Array,
    hessian: Array,
    *,
    cross: bool = False,
    slot: int = 0,
) -> HypergradientError:
    """Return bias and standard deviation of the hypergradient that one run returns.

    ``Ebar^T l + D*^T Q ubar + <Q, E[u E^T]>``, the last term ``Ebar^T Q ubar`` if ``cross``; the
    deviation is that of ``E^T (l + Q ubar) + (D* + Ebar)^T Q u``.

    Parameters
    ----------
    moments : of :class:`Ridge` or of a linearised problem, at the end of the run.
    derivative : ``D* [p, n]``.
    gradient, hessian : of the outer loss at ``x*``, ``l [n]`` and ``Q [n, n]``; the loss must not
        depend on the hyperparameters directly.
    cross : the outer gradient is taken at an independent run's iterate.
    slot : which slot of the rule is read: 0 the iterate, -1 the average of ``rules.averaged``.

    Raises
    ------
    ValueError : shapes that do not match.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from bilevel.noise import Ridge, hypergradient_error, limits, rules
    >>> A, b = jnp.array([[1.0], [2.0], [1.0]]), jnp.array([1.0, 0.0, 3.0])
    >>> process = Ridge.from_data(A, b, 0.5, jnp.array([[0.5]]), batch_size=1)
    >>> end = jax.jit(limits.stationary)(process, rules.sgd(0.1))
    >>> l, Q = process.solution - 1.0, jnp.eye(1)
    >>> error = hypergradient_error.predict(end, process.derivative, l, Q)
    >>> error.bias.shape
    (1,)
    """
    p, n = derivative.shape
    require_shape("gradient", gradient, (n,), f"derivative has {n} features")
    require_shape("hessian", hessian, (n, n), f"derivative has {n} features")
    require_shape("moments.mean_d", moments.mean_d[:, 0], (p, n), "as derivative")
    u = moments.mean_x[slot]
    xx = moments.xx[slot, :, slot]
    spread_x = xx - jnp.outer(u, u)

    def one(D: Array, E: Array, xd: Array, dd: Array) -> tuple[Array, Array]:
        spread_d, shared = dd - jnp.outer(E, E), xd - jnp.outer(u, E)
        along_x, along_d = hessian @ (D + E), gradient + hessian @ u
        variance = along_x @ spread_x @ along_x + along_d @ spread_d @ along_d
        bias = E @ gradient + D @ hessian @ u + E @ hessian @ u
        if cross:
            variance += jnp.sum((hessian @ spread_x @ hessian) * spread_d)
        else:
            bias += jnp.sum(hessian * shared)
            variance += 2 * along_x @ shared @ along_d
        return bias, jnp.sqrt(jnp.maximum(variance, 0))

    xd, dd = moments.xd[:, slot, :, slot], moments.dd[:, slot, :, slot]
    bias, deviation = jax.vmap(one)(derivative, moments.mean_d[:, slot], xd, dd)
    value_bias = gradient @ u + jnp.sum(hessian * xx) / 2
    return HypergradientError(derivative @ gradient, bias, deviation, value_bias)
