r"""Uncertainty over the data: validation rows are a sample, and so is what was tuned on them.

    x = argmin h(x),   h(x) = mean_j l_j(w(x), x),   A = d^2 h / d x^2,   s_j = d l_j(w(x), x) / d x
    cov(x) = A^{-1} (cov(s_j) / n) A^{-1},   error(h)^2 = var(l_j) / n,   gain = tr(A cov(x)) / 2

the sandwich of an M-estimator (Huber, 1967), ``x`` being the coordinates of ``hyper``. Training
rows add their influence on the minimiser, ``v_i(x) = -grad phi_i(w)^T H^{-1} grad_w h`` (Cook,
Weisberg, 1982; Koh, Liang, 2017), with ``cov(d v_i / d x) / m`` beside ``cov(s_j) / n``. All
derivatives are those of one Newton step from the minimiser, which are exact there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Data, Problem, count_examples
from bilevel.solvers import minimise
from bilevel.spaces import Spaces, free_coordinates
from bilevel.tuning import Result
from bilevel.utils import Float, Hyper, PyTree, Scalar, register_node, require_smooth

_FLAT = 1e-6  # of the largest curvature of h: along such a direction the data decide nothing
_ROOM = 2000  # params, whose Hessian is dense


class Sensitivities(NamedTuple):
    """Of rows and of the whole at the tuned point, for p coordinates.

    ``losses [n]`` of the validation rows and their ``slopes [n, p]``; ``influence [m]`` of the
    training rows on the value, and its ``pulls [m, p]``; ``curvature [p, p]`` of the value.
    """

    losses: Array
    slopes: Array
    influence: Array
    pulls: Array
    curvature: Array


@dataclass(frozen=True)
class Confidence:
    """What another draw of the rows would change; made by :func:`confidence`.

    Parameters
    ----------
    value, value_error : ``()``; the outer value at the tuned hyperparameters, its standard error.
    free : the tuned coordinates; natural units where the problem has no space.
    covariance : ``[p, p]``, of the flat coordinates; infinite where the value is flat.
    curvature : ``[p, p]``, of the value in these coordinates.
    gain : ``()``; by how much the value at the tuned point exceeds that at the best one, on
        average, because the rows are so few: what more rows could still bring.
    space : of the problem, static.
    """

    value: Scalar
    value_error: Scalar
    free: PyTree
    covariance: Float[Array, "p p"]
    curvature: Float[Array, "p p"]
    gain: Scalar
    space: Spaces | None = None

    @property
    def error(self) -> PyTree:
        """Standard errors of the coordinates, like them."""
        return self._like(jnp.sqrt(jnp.diag(self.covariance)))

    def interval(self, level: float = 0.95) -> tuple[PyTree, PyTree]:
        """Return the ends of an interval for every hyperparameter, in natural units."""
        at, error = ravel_pytree(self.free)[0], jnp.sqrt(jnp.diag(self.covariance))
        reach = jax.scipy.special.ndtri((1 + level) / 2) * error
        return self._natural(at - reach), self._natural(at + reach)

    def contains(self, hyper: Hyper, level: float = 0.95) -> Array:
        """Return whether a point lies in the region of all hyperparameters, an ellipsoid."""
        away = ravel_pytree(free_coordinates(self.space, hyper))[0] - ravel_pytree(self.free)[0]
        finite = jnp.where(jnp.isfinite(self.covariance), self.covariance, 1e30)
        distance = away @ jnp.linalg.solve(finite, away)
        return jax.scipy.special.gammainc(len(away) / 2, distance / 2) <= level

    def simplest(self, toward: PyTree) -> PyTree:
        """Return the farthest point within one standard error of the value, by its curvature.

        ``toward`` is a direction in the coordinates in which models become simpler: ones for log
        penalties. It is the one-standard-error rule of Breiman et al., 1984.
        """
        d = ravel_pytree(toward)[0]
        bend = d @ self.curvature @ d
        step = jnp.sqrt(2 * self.value_error / jnp.where(bend > 0, bend, jnp.nan))
        return self._natural(ravel_pytree(self.free)[0] + step * d)

    @property
    def message(self) -> str:
        """Whether more validation rows would change the answer, in a sentence."""
        share = float(self.gain / jnp.abs(self.value))
        text = (
            f"outer value {float(self.value):.4g} with standard error {float(self.value_error):.2g}"
        )
        if not jnp.isfinite(self.gain):
            return (
                f"{text}; along some hyperparameters it is flat, and the rows do not decide them."
            )
        verdict = "would change the answer" if share > 0.01 else "would hardly change the answer"
        return (
            f"{text}; more rows {verdict}: with ever so many it would be lower by "
            f"{float(self.gain):.2g} on average, {share:.1%} of it."
        )

    def _like(self, flat: Array) -> PyTree:
        return ravel_pytree(self.free)[1](flat)

    def _natural(self, flat: Array) -> PyTree:
        free = self._like(flat)
        return free if self.space is None else self.space.natural(free)


register_node(
    Confidence,
    data_fields=["value", "value_error", "free", "covariance", "curvature", "gain"],
    meta_fields=["space"],
)


def confidence(
    result: Result, problem: Problem, data: Data, *, training: bool = False
) -> Confidence:
    """Return how much the value and the tuned hyperparameters depend on the draw of the rows.

    A first-order statement about a tuned point in the interior, where the value has curvature; the
    inner problem is solved anew, by Newton's method, and its Hessian is dense. Composes with
    ``jit`` and ``vmap``.

    Parameters
    ----------
    result : of :func:`bilevel.tune`, converged.
    problem, data : what was tuned, on what; losses are means over independent rows.
    training : over the draw of the training rows too. Without it the training rows stay as they
        are: what is then estimated is the best hyperparameters for them.

    Raises
    ------
    ValueError : a problem with ``start``, ``prox``, keys, a model state or ``running``; more than
        2000 params; fewer than two validation rows.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.exp(h) * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     quadratic=True,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.0, 1.5, 2.0]))
    >>> found = bl.tune(problem, bl.ClosedForm(), bl.outer.LBFGS(), jnp.array(0.0), jnp.array(0.0),
    ...                 data, steps=30, key=jax.random.key(0))
    >>> sure = bl.confidence(found, problem, data)  # w = 2 / (1 + e^h) is the mean, 1.5
    >>> (sure.error * 0.375).round(2)  # |dw/dh| times the error of h: 0.5 / sqrt(3)
    Array(0.29, dtype=float32)
    """
    require_smooth("confidence", problem)
    n, m = count_examples(data.outer), count_examples(data.inner)
    if n < 2:
        raise ValueError(f"confidence needs two validation rows at least, got {n}.")
    free = free_coordinates(problem.space, result.hyper)
    found = measure_sensitivities(problem, result.hyper, result.params, data)
    values, vectors = jnp.linalg.eigh(found.curvature)
    spread = jnp.atleast_2d(jnp.cov(found.slopes.T)) / n
    error = jnp.var(found.losses, ddof=1) / n
    if training:
        spread = spread + jnp.atleast_2d(jnp.cov(found.pulls.T)) / m
        error = error + jnp.var(found.influence, ddof=1) / m
    flat = values <= _FLAT * jnp.max(jnp.abs(values))
    inverse = (vectors * jnp.where(flat, 0, 1 / jnp.where(flat, 1, values))) @ vectors.T
    # What has a share in a flat direction is not decided: its variance has no bound.
    share = jnp.abs(vectors) @ flat > _FLAT
    covariance = inverse @ spread @ inverse
    covariance = covariance + jnp.diag(jnp.where(share, jnp.inf, 0))
    gain = jnp.where(jnp.any(flat), jnp.inf, jnp.sum(inverse * spread) / 2)
    value = jnp.mean(found.losses)
    return Confidence(
        value, jnp.sqrt(error), free, covariance, found.curvature, gain, problem.space
    )


@partial(jax.jit, static_argnames="problem")
def measure_sensitivities(
    problem: Problem, hyper: Hyper, params: PyTree, data: Data
) -> Sensitivities:
    """Return losses, influences and their derivatives in the coordinates of ``hyper``.

    Raises
    ------
    ValueError : more params than a dense Hessian has room for.
    """
    at, to_params = ravel_pytree(params)
    if at.size > _ROOM:
        raise ValueError(
            f"confidence factorises the inner Hessian, and {at.size} params are more than "
            f"{_ROOM}. Give it a model of fewer params, such as its last layer."
        )
    x0, to_free = ravel_pytree(free_coordinates(problem.space, hyper))
    w0 = ravel_pytree(minimise(problem, hyper, params, data).params)[0]

    def natural(x: Array) -> Hyper:
        free = to_free(x)
        return free if problem.space is None else problem.space.natural(free)

    def inner(w: Array, x: Array, batch: PyTree) -> Scalar:
        return problem.inner(to_params(w), natural(x), batch)

    def outer(w: Array, x: Array, batch: PyTree) -> Scalar:
        return problem.outer(to_params(w), natural(x), batch)

    def solve(w: Array, x: Array, b: Array) -> Array:
        return jnp.linalg.solve(jax.hessian(inner)(w, x, data.inner), b)

    def look(x: Array) -> tuple[Array, Array, Array]:
        """Return the validation rows' losses, the training rows' influence, the hypergradient."""
        w = w0 - solve(w0, x, jax.grad(inner)(w0, x, data.inner))
        to_w, direct = jax.grad(outer, argnums=(0, 1))(w, x, data.outer)
        u = solve(w, x, to_w)

        def pull(x: Array, batch: PyTree) -> Scalar:
            return -jnp.vdot(jax.grad(inner)(w, x, batch), u)

        losses = _of_rows(lambda row: outer(w, x, row), data.outer)
        influence = _of_rows(lambda row: pull(x, row), data.inner)
        return losses, influence, direct + jax.grad(pull)(x, data.inner)

    losses, influence, _ = look(x0)
    slopes, pulls, curvature = jax.jacfwd(look)(x0)
    return Sensitivities(losses, slopes, influence, pulls, (curvature + curvature.T) / 2)


def _of_rows(fn: Callable[[PyTree], Scalar], data: PyTree) -> Array:
    """Return the losses of single rows, each a batch of one; ``[n]``."""
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, None], data)
    return jax.vmap(fn)(batches)
