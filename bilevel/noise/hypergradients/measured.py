r"""Curvature and gradient noise measured on a real problem: products and single examples only.

The inputs of every formula of this package, at any ``params``: the extremes of the inner Hessian
by Lanczos, and the noise of one example's gradient and of its derivative,

    tr Cov_i(g_i),   tr Cov_i(h_ij),   h_ij = H_i D_j + d grad f_i / d theta_j

by ``vmap`` over examples in chunks. No ``[n, n]`` array unless the covariance is asked for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.linear import Eigenvalue, extremes
from bilevel.noise.per_example import ExampleLoss, FlatProblem
from bilevel.utils import PyTree, require_positive_int


class Estimated(NamedTuple):
    """An estimate: ``value`` and its ``standard_error``, 0 if all examples were looked at."""

    value: Array
    standard_error: Array


class GradientNoise(NamedTuple):
    """Traces of the covariance of one example's contribution; divide by the batch size.

    ``gradient ()``; ``derivative [p]``, one per entry of hyper, or ``None``; ``covariance [n, n]``
    of the gradient, in the order of ``ravel_pytree(params)``, or ``None``.
    """

    gradient: Estimated
    derivative: Estimated | None
    covariance: Array | None


def hessian_extremes(
    problem: Problem, hyper: PyTree, params: PyTree, data: Data, key: Array, steps: int = 30
) -> tuple[Eigenvalue, Eigenvalue]:
    """Return the smallest and largest eigenvalue of the inner Hessian, with error bounds.

    ``steps + 2`` Hessian-vector products over all inner data; memory ``steps`` x params. The
    largest converges in some ten steps, the smallest in about ``sqrt(largest / smallest)``.

    Raises
    ------
    ValueError : a proximal part, ``problem.start``, ``steps`` below 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> from bilevel.noise import estimate
    >>> case = bl.testing.ridge(seed=0)
    >>> smallest, largest = estimate.hessian_extremes(
    ...     case.problem, case.hyper, case.params, case.data, jax.random.key(0)
    ... )
    >>> bool(0 < smallest.value < largest.value)
    True
    """
    flat = FlatProblem.from_problem("estimate.hessian_extremes", problem, hyper, params, data)
    start = jax.random.normal(key, flat.x.shape, flat.x.dtype)
    return extremes(flat.hvp, start, steps)


def gradient_noise(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    *,
    derivative: PyTree = None,
    covariance: bool = False,
    sample: int | None = None,
    key: Array | None = None,
    chunk: int | None = 256,
) -> GradientNoise:
    r"""Return trace of the gradient noise of one example, of its derivative too if that is given.

    ``mean_i |g_i - g|^2`` with ``g`` the full gradient. From a ``sample`` of k examples it is
    unbiased, with standard error ``s sqrt((1 - k / m) / k)``, ``s`` the deviation of its terms:
    heavy tails show there (64 examples once had an error of a fifth; take several hundred, or all).

    Parameters
    ----------
    derivative : ``D``, a tree like params with leaves ``[p, *leaf]`` (the order of
        ``ravel_pytree(hyper)``), for the noise of the derivative.
    covariance : also return the ``[n, n]`` covariance.
    sample, key : examples to look at, drawn without replacement with ``key``; ``None`` is all.
    chunk : examples vectorised at a time.

    Raises
    ------
    ValueError : a proximal part or ``problem.start``; a sample without a key, below 2, or above m.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> from bilevel.noise import estimate
    >>> problem = bl.Problem(lambda w, h, x: jnp.mean((x - w) ** 2) / 2, lambda w, h, x: w)
    >>> data = bl.Data(inner=jnp.array([1.0, 3.0]), outer=jnp.zeros(1))
    >>> float(estimate.gradient_noise(problem, 0.0, jnp.array(2.0), data).gradient.value)
    1.0
    """
    flat = FlatProblem.from_problem("estimate.gradient_noise", problem, hyper, params, data)
    rows = _rows(flat.count, sample, key)
    D = None if derivative is None else _flatten(derivative, flat)
    center = _contribution(lambda x, theta: flat.inner(x, theta, data.inner), flat, D)

    def one(loss: ExampleLoss) -> tuple[PyTree, PyTree]:
        parts = _contribution(loss, flat, D)
        apart = jax.tree.map(jnp.subtract, parts, center)
        sizes = jax.tree.map(lambda x: jnp.sum(x**2, -1), apart)
        return sizes, apart[0] if covariance else ()

    sizes, apart = flat.map_examples(one, rows, chunk)
    traces = [_mean(x, flat.count) for x in sizes]
    spread = apart.T @ apart / len(rows) if covariance else None
    return GradientNoise(traces[0], traces[1] if D is not None else None, spread)


def _contribution(loss: ExampleLoss, flat: FlatProblem, D: Array | None) -> tuple[Array, ...]:
    """Return gradient ``[n]`` of a loss ``(x, theta) -> ()``, and its derivatives, ``[p, n]``."""
    gradient = jax.grad(loss)
    if D is None:
        return (gradient(flat.x, flat.theta),)

    def along(d: Array, t: Array) -> tuple[Array, Array]:
        return jax.jvp(gradient, (flat.x, flat.theta), (d, t))

    basis = jnp.eye(len(flat.theta), dtype=flat.theta.dtype)
    return jax.vmap(along, out_axes=(None, 0))(D, basis)


def _flatten(derivative: PyTree, flat: FlatProblem) -> Array:
    """Return ``[p, n]``, from a tree like params with a leading axis p."""
    p, n = len(flat.theta), len(flat.x)
    leaves = [jnp.asarray(leaf).reshape(p, -1) for leaf in jax.tree.leaves(derivative)]
    matrix = jnp.concatenate(leaves, 1)
    if matrix.shape != (p, n):
        raise ValueError(
            f"estimate.gradient_noise: derivative has {matrix.shape[1]} entries for each entry of "
            f"hyper, params {n}. Its leaves are those of params with a leading axis of length {p}."
        )
    return matrix


def _rows(count: int, sample: int | None, key: Array | None) -> Array:
    if sample is None:
        return jnp.arange(count)
    require_positive_int("estimate.gradient_noise", "sample", sample)
    if key is None or not 2 <= sample <= count:
        raise ValueError(
            f"estimate.gradient_noise: sample={sample} needs a key and must lie between 2 and the "
            f"number of inner examples, {count}. sample=None takes all of them."
        )
    return jax.random.choice(key, count, (sample,), replace=False)


def _mean(values: Array, count: int) -> Estimated:
    """Return the mean over the leading axis, with the error of a sample from ``count`` examples."""
    k = len(values)
    spread = jnp.std(values, axis=0, ddof=1) if k > 1 else jnp.zeros_like(values[0])
    return Estimated(jnp.mean(values, 0), spread * ((1 - k / count) / k) ** 0.5)
