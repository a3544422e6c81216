"""Constraints on the outer level by an augmented Lagrangian.

    min_h f(w*(h), h)  subject to  g(w*(h), h) <= 0:
    L(h; mu, rho) = f + sum_k (max(0, mu_k + rho g_k)^2 - mu_k^2) / (2 rho),
    mu <- max(0, mu + rho g)  after each minimisation of L over h

Hestenes, 1969; Powell, 1969; Rockafellar, 1973, for inequalities; the first ``rho`` and its growth
as in Birgin, Martinez, Practical augmented Lagrangian methods, 2014.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Estimator, Problem, UserLoss, count_examples
from bilevel.outer import OuterRule
from bilevel.tuning.tune import Result, tune
from bilevel.utils import (
    Hyper,
    Key,
    Number,
    Params,
    Scalar,
    not_callable,
    register_node,
    require_positive,
    require_positive_int,
)


@dataclass(frozen=True)
class Constrained:
    """What :func:`tune_constrained` found.

    Parameters
    ----------
    result : of the last :func:`bilevel.tune`; its values are those of the augmented Lagrangian.
    value : ``()``; the outer loss itself.
    constraints : ``[k]``; ``g``, at most 0 where they hold.
    multipliers : ``[k]``; what the outer loss would fall by, to first order, for a constraint one
        unit weaker. 0 where a constraint does not bind.
    converged : ``()``; constraints hold, and those with a multiplier bind, to within ``tol``.
    rounds : how many times the augmented Lagrangian was minimised.
    """

    result: Result
    value: Array
    constraints: Array
    multipliers: Array
    converged: Array
    rounds: int

    @property
    def hyper(self) -> Hyper:
        """The tuned hyperparameters."""
        return self.result.hyper


register_node(
    Constrained,
    data_fields=["result", "value", "constraints", "multipliers", "converged"],
    meta_fields=["rounds"],
)


def tune_constrained(
    problem: Problem,
    constraints: UserLoss,
    estimator: Estimator,
    outer: OuterRule,
    hyper: Hyper,
    params: Params,
    data: Data,
    *,
    steps: int,
    key: Key,
    tol: Number = 1e-3,
    rounds: int = 20,
    **options: Any,
) -> Constrained:
    """Tune ``hyper`` where ``constraints(params, hyper, batch) <= 0``, each of them.

    Parameters
    ----------
    problem, estimator, outer, hyper, params, data, steps, key : as for :func:`bilevel.tune`, which
        minimises the augmented Lagrangian once a round, from where the last one ended.
    constraints : a function of the arguments of ``problem.outer``, and of its rows; ``()`` or
        ``[k]``. All rows at once: ``max`` of a minibatch is not that of the whole on average.
    tol : by how much a constraint may be missed, in its own units.
    rounds : at most so many. Where they do not suffice ``converged`` is false: weaken a constraint
        that cannot hold, or take more ``steps``.
    options : other keywords of :func:`bilevel.tune`.

    Raises
    ------
    TypeError : ``constraints`` is no function. ValueError : losses that take a key or a state or
        return side results; constraints of another shape; what ``tune`` refuses.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(  # w* = h is to be near 2, and at most 1
    ...     inner=lambda w, h, x: jnp.mean((w - h + 0 * x) ** 2) / 2,
    ...     outer=lambda w, h, x: (w - 2) ** 2 / 2 + 0 * jnp.mean(x),
    ... )
    >>> data = bl.Data(inner=jnp.zeros(1), outer=jnp.zeros(1))
    >>> found = bl.tune_constrained(
    ...     problem, lambda w, h, x: w - 1, bl.Auto(), bl.outer.Auto(), jnp.array(0.0),
    ...     jnp.array(0.0), data, steps=50, key=jax.random.key(0),
    ... )
    >>> bool(abs(found.hyper - 1) < 1e-3), bool(abs(found.multipliers[0] - 1) < 0.01)
    (True, True)
    """
    if not callable(constraints):
        raise TypeError(not_callable("tune_constrained: constraints", constraints))
    if not problem.is_plain:
        raise ValueError(
            "tune_constrained takes losses of params, hyper and batch alone, without a key, a "
            "model state, side results or a running loss."
        )
    require_positive_int("tune_constrained", "rounds", rounds)
    require_positive("tune_constrained", "tol", tol)
    losses = problem.outer, constraints
    whole = replace(problem, outer=partial(_lagrangian, *losses))
    multipliers = jnp.zeros(_count(constraints, params, hyper, data))
    rows = count_examples(data.outer)
    weight, before, done = 0.0, jnp.inf, 0
    while True:
        done += 1
        # One number a row each, so that no round is another program.
        spread = [jnp.full((rows, *jnp.shape(x)), x) for x in (multipliers, weight)]
        given = Data(data.inner, (data.outer, *spread))
        result = tune(
            whole, estimator, outer, hyper, params, given, steps=steps, key=key, **options
        )
        hyper, params = result.hyper, result.params
        value, g = _measure(losses, params, hyper, data.outer)
        # A constraint is missed above 0, and below where its multiplier says that it binds.
        left = jnp.maximum(g, -multipliers / weight) if weight else jnp.maximum(g, 0)
        missed = float(jnp.max(jnp.abs(left)))
        multipliers = jnp.maximum(0, multipliers + weight * g)
        if missed <= tol or done == rounds or not bool(jnp.isfinite(value)):
            converged = jnp.asarray(missed <= tol)
            return Constrained(result, value, g, multipliers, converged, done)
        if not weight:
            weight = float(jnp.clip(10 * jnp.abs(value) / jnp.sum(left**2), 1e-6, 1e6))
        elif missed > 0.5 * before:
            weight *= 10
        before = missed


def _lagrangian(
    first: UserLoss, constraints: UserLoss, params: Params, hyper: Hyper, batch: Any
) -> Scalar:
    rows, multipliers, weight = batch
    mu, rho = jnp.mean(multipliers, 0), jnp.mean(weight)
    g = jnp.atleast_1d(constraints(params, hyper, rows))
    safe = jnp.where(rho > 0, rho, 1)
    terms = (jnp.maximum(0, mu + rho * g) ** 2 - mu**2) / (2 * safe)
    return first(params, hyper, rows) + jnp.sum(terms)


def _measure(
    losses: tuple[UserLoss, UserLoss], params: Params, hyper: Hyper, rows: Any
) -> tuple[Array, Array]:
    """Return the outer loss and the constraints on all rows."""
    return losses[0](params, hyper, rows), jnp.atleast_1d(losses[1](params, hyper, rows))


def _count(constraints: UserLoss, params: Params, hyper: Hyper, data: Data) -> int:
    """Return how many constraints there are; raise unless they are one number or a vector."""
    made = jax.eval_shape(constraints, params, hyper, data.outer)
    shape = getattr(made, "shape", None)
    if shape is None or len(shape) > 1:
        raise ValueError(
            "tune_constrained: constraints must return one number or a vector of them, at most 0 "
            f"where they hold, got {made}."
        )
    return shape[0] if shape else 1
