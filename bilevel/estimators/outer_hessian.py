"""Products with the Hessian of the outer function: for Newton steps and for intervals."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel.core import ChoosesEstimator, Data, Estimator, Problem
from bilevel.estimators.call import hypergradient
from bilevel.estimators.one_step import OneStep
from bilevel.estimators.rebuild import innermost_estimator
from bilevel.estimators.reverse import Reverse
from bilevel.utils import FloatTreeLike, Hyper, Key, PyTree, require_same, strip_weak_types


def curvature(
    problem: Problem,
    estimator: Estimator,
    hyper: FloatTreeLike,
    params: FloatTreeLike,
    data: Data,
    key: Key,
    *,
    along: FloatTreeLike | None = None,
    model_state: PyTree = None,
) -> Hyper:
    """Return the product of the Hessian of ``h(hyper) = outer(w*(hyper), hyper)`` with ``along``.

    The derivative of the estimate, key and start held: as exact as the hypergradient where the
    solver has converged, and that of the steps made where it has not. In natural units. Forward
    mode, or reverse mode for estimators that have no other (``Reverse``).

    Parameters
    ----------
    problem, estimator, hyper, params, data, key, model_state : as for
        :func:`bilevel.hypergradient`.
    along : like ``hyper``; ``None`` for the whole Hessian, ``[p, p]`` in the order of
        ``jax.flatten_util.ravel_pytree(hyper)``, at the price of p products.

    Raises
    ------
    ValueError, TypeError : as :func:`bilevel.hypergradient` does; ``along`` that is not like
        ``hyper``; an estimator without second derivatives in either mode.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + h * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     quadratic=True,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> at = problem, bl.ClosedForm(), jnp.array(0.0), jnp.array(0.0), data, jax.random.key(0)
    >>> f"{bl.curvature(*at, along=jnp.array(1.0)):.3f}"  # h(x) = (2 / (1 + x) - 1.5)^2 / 2
    '6.000'
    """
    hyper, params = strip_weak_types(hyper), strip_weak_types(params)

    def slope(hyper: Hyper) -> Hyper:
        parts = hyper, params, data, key
        return hypergradient(
            problem, estimator, *parts, model_state=model_state, evidence="off", max_error=jnp.inf
        )[0].grad

    def product(along: Hyper) -> Hyper:
        if _has_reverse_mode_alone(problem, estimator, hyper, params, data):
            return jax.vjp(slope, hyper)[1](along)[0]  # of a symmetric matrix
        return jax.jvp(slope, (hyper,), (along,))[1]

    if along is not None:
        along = strip_weak_types(along)
        require_same("along", along, "hyper", hyper)
        return product(along)
    flat, unravel = ravel_pytree(hyper)
    rows = jax.vmap(lambda row: ravel_pytree(product(unravel(row)))[0])
    return rows(jnp.eye(flat.size, dtype=flat.dtype))


def _has_reverse_mode_alone(
    problem: Problem, estimator: Estimator, hyper: Hyper, params: FloatTreeLike, data: Data
) -> bool:
    """Return whether the estimator that runs back-propagates in mixed mode."""
    inside = innermost_estimator(estimator)
    if isinstance(inside, ChoosesEstimator):
        inside = inside.choose(problem, hyper, params, data).estimator
    return isinstance(inside, Reverse | OneStep)
