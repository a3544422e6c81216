r"""Which training examples made a prediction what it is: a hypergradient per example.

    w*(v) = argmin_w sum_i v_i inner(w, row_i) / sum_i v_i,   tau_i = d outer(w*(v)) / d v_i, v = 1

By :class:`bilevel.Implicit` ``tau_i = -grad inner(w, row_i)^T H^{-1} grad outer(w) / n``, the
influence function (Cook, Weisberg, 1982; Koh, Liang, ICML 2017); by an unrolled estimator the
derivative of the very run (Hara et al., NeurIPS 2019; Bae et al., NeurIPS 2024).
"""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp

from bilevel.checks.row_weights import OfHyper, WeightedHyper, map_rows, weigh_rows
from bilevel.core import Data, Estimate, Estimator, Problem, count_examples
from bilevel.estimators import EvidenceWarning, describe_error, hypergradient
from bilevel.utils import (
    DataTree,
    FloatTreeLike,
    Hyper,
    Key,
    Params,
    is_traced,
    strip_weak_types,
)


def attribute(
    problem: Problem,
    estimator: Estimator,
    hyper: FloatTreeLike,
    params: FloatTreeLike,
    data: Data,
    key: Key,
    *,
    each: bool = False,
    evidence: str | None = None,
    max_error: float = 0.5,
) -> Estimate:
    """Return by how much the outer loss grows with the weight of each training example.

    To first order a training set without the examples ``S`` gives
    ``value - sum_{i in S} grad[i]``: a positive entry belongs to an example that does harm. The
    inner solve is made once, whatever the number of outer rows.

    Parameters
    ----------
    problem, estimator, hyper, params, data, key, evidence, max_error : as for
        :func:`bilevel.hypergradient`. The inner loss is a mean over rows. ``Implicit`` gives
        influence functions; ``Reverse`` the derivative of the run itself, the better answer where
        it has not converged, around ``Replicated`` with a standard error. A step size that is a
        function sees ``(weights, hyper)`` as ``h.weights`` and ``h.hyper``.
    each : one attribution per outer row, each a batch of one, in place of one for the outer loss.

    Warns
    -----
    EvidenceWarning : as :func:`bilevel.hypergradient`; with ``each`` of the rows together. What
        evidence calls an error of ``Reverse`` is the distance to the derivative of the minimiser:
        ``max_error=jnp.inf`` where the run itself is what is asked about.

    Returns
    -------
    Estimate : ``grad [n]``, or with ``each`` a leading axis ``T`` of outer rows everywhere:
        ``value [T]``, ``grad [T, n]``, and ``jax.vmap(lambda e: e.interval())`` for intervals.

    Raises
    ------
    ValueError : as :func:`bilevel.hypergradient` does; an inner loss that is no mean over its rows;
        a problem with keys, a model state, side results, ``running``, ``start`` that depends on
        ``hyper``, or an equation: write the weights into its losses, and take ``hypergradient``.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ...     quadratic=True,
    ... )
    >>> data = bl.Data(inner=jnp.array([0.0, 1.0, 3.0, 4.0]), outer=jnp.array([1.0]))
    >>> at = problem, bl.ClosedForm(), (), jnp.array(0.0), data, jax.random.key(0)
    >>> [f"{x:.2f}" for x in bl.attribute(*at).grad]  # w* = 2; (w* - 1) (x_i - w*) / 4
    ['-0.50', '-0.25', '0.25', '0.50']
    """
    _require_rows(problem)
    hyper, params = strip_weak_types(hyper), strip_weak_types(params)
    if not is_traced((hyper, params, data)):
        _require_mean(problem, hyper, params, data.inner)
    n = count_examples(data.inner)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    weighted = replace(
        problem,
        inner=weigh_rows(problem.inner),
        outer=OfHyper(problem.outer),
        prox=None if problem.prox is None else OfHyper(problem.prox),
        space=None,
    )
    inner = data.inner, jnp.arange(n, dtype=jnp.int32)
    at = WeightedHyper(jnp.ones(n, dtype), hyper)

    def of_rows(rows: DataTree) -> Estimate:
        found, _ = hypergradient(
            weighted,
            estimator,
            at,
            params,
            Data(inner, rows),
            key,
            evidence=evidence,
            max_error=max_error,
        )
        return jax.tree.map(
            lambda x: x.weights if isinstance(x, WeightedHyper) else x,
            found,
            is_leaf=lambda x: isinstance(x, WeightedHyper),
        )

    if not each:
        return of_rows(data.outer)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data.outer)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(
            "bl.attribute(each=True) takes data.outer row by row, and its arrays do not have the "
            "same number of rows along a first axis. Put what all rows share into the outer loss."
        )
    found = map_rows(of_rows, data.outer)
    if not is_traced(found) and evidence != "off":
        _warn_of_rows(found, max_error)
    return found


def _warn_of_rows(found: Estimate, max_error: float) -> None:
    """Warn, of the worst row, where the errors of all rows together are above ``max_error``."""
    sizes = jnp.linalg.norm(found.grad, axis=1)
    errors = sizes * jax.vmap(lambda row: row.relative_error)(found)
    if jnp.linalg.norm(errors) > max_error * jnp.linalg.norm(sizes):
        worst = int(jnp.argmax(jnp.where(jnp.isnan(errors), jnp.inf, errors)))
        row = jax.tree.map(lambda x: x[worst], found)
        text = f"Of all outer rows, row {worst} has the largest error. {describe_error(row)}"
        warnings.warn(text, EvidenceWarning, stacklevel=3)


def _require_rows(problem: Problem) -> None:
    """Raise ``ValueError`` where the loss of a row is none of its own."""
    if problem.is_equation or not problem.is_plain or problem.start is not None:
        raise ValueError(
            "bl.attribute weighs the inner loss of single rows, and this problem has an equation, "
            "a start, a key, a model state, side results or a running loss. Write a weight per "
            "row into its losses (a row's number in data.inner, hyper[number]), and take "
            "bl.hypergradient at weights of 1."
        )


def _require_mean(problem: Problem, hyper: Hyper, params: Params, rows: DataTree) -> None:
    """Raise ``ValueError`` where the loss of all rows is not the mean of those of single rows."""
    each = map_rows(lambda row: problem.inner(params, hyper, row), rows)
    whole, mean = problem.inner(params, hyper, rows), jnp.mean(each)
    scale = jnp.maximum(jnp.mean(jnp.abs(each)), jnp.abs(whole))
    if not jnp.abs(whole - mean) <= 1e3 * jnp.finfo(mean.dtype).eps * scale:
        raise ValueError(
            f"bl.attribute: the inner loss of all rows at params is {float(whole):.6g}, the mean "
            f"over single rows {float(mean):.6g}: weights of rows would solve another problem. "
            "Take jnp.mean over the batch instead of jnp.sum, and leave normalisation "
            "within a batch out."
        )
