"""How to run SGD so that its hypergradient is as good as asked for, at least cost."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core import Data, Problem, count_examples
from bilevel.estimators import check_losses
from bilevel.noise import FlatProblem, batch_factor
from bilevel.planning import dense_route, influence_route
from bilevel.planning.compare import compare_estimators
from bilevel.planning.planner import Planner
from bilevel.planning.refusals import (
    require_exact_moments,
    require_plan_tolerance,
    require_slope,
)
from bilevel.planning.report import Plan
from bilevel.planning.scheme import Scheme
from bilevel.utils import (
    PyTree,
    as_float64,
    require_positive,
    require_positive_int,
    require_smooth,
    require_variables,
)

_BATCHES = (1, 4, 16, 64, 256)


def plan(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    tolerance: float = 0.1,
    *,
    batch_sizes: Sequence[int | None] | None = None,
    step_size: float | None = None,
    replicas: int | None = None,
    max_steps: int = 1_000_000,
    budget: float = 1e9,
    momentum: float | None = None,
    nesterov: bool = False,
    sampling: str = "iid",
    route: str | None = None,
    seed: int = 0,
    compare: bool = False,
) -> Plan:
    r"""Choose step size, batch size, late start, averaging window and replicas for ``Forward``.

    The cheapest run whose hypergradient has the relative error ``tolerance``: the root mean square
    over runs of ``|h - h*| / |h*|``, Euclidean norms over all of hyper, ``h*`` the hypergradient
    at the solution of the inner problem. Errors are predicted by the second moments of SGD
    linearised at that solution (exact on quadratic inner losses, up to products of noise), the
    mean to second order. All in float64. Nothing is printed: ``str(plan)`` is a table with reasons.

    Parameters
    ----------
    problem, hyper, params, data : as for :func:`bilevel.hypergradient`; the run starts at params.
    tolerance : in (0, 1).
    batch_sizes : to choose from, ``None`` among them for the full batch; by default 1, 4, 16, ...
        and the full batch.
    step_size : fixed instead of chosen.
    replicas : copies of the run, for a measured standard error; by default one, or as many as
        keep each within ``max_steps``.
    max_steps : of one run.
    budget : gradients of single examples, a tangent of one example counted as two.
    momentum, nesterov : of the solver, as for :class:`bilevel.SGD`; by exact moments only.
    sampling : of minibatches, ``"iid"``, ``"without_replacement"``, or ``"epoch"`` for shuffled
        epochs: of sizes that divide the number of examples, on averages of whole epochs, from the
        moments of all orders of up to six examples, else of some hundred random ones.
    route : ``"dense"``, exact moments, up to some dozens of params; ``"influence"``, cautious, no
        matrix, or one of up to 1024 params off quadratic losses; by default what fits.
    seed : of the vectors that the influence route starts Lanczos from.
    compare : fill ``plan.comparison``, what each of several errors costs each of six estimators:
        SGD read at its last iterate, at its tail average, cross-sampled and implicitly; SVRG and
        SAGA, exactly, where the inner loss is quadratic. ``plan.comparison.draw(axes)`` draws it.

    Raises
    ------
    ValueError : ``problem.start`` or ``problem.prox``; an inner problem that is not solved by
        Newton's method, or whose Hessian there is singular or indefinite; a hypergradient of 0; a
        tolerance out of reach; a step size that theory is not trusted with; epochs; momentum, or a
        comparison, where exact moments are too large.

    Examples
    --------
    >>> import jax, bilevel as bl
    >>> case = bl.testing.ridge(seed=0)
    >>> arguments = case.problem, case.hyper, case.params, case.data
    >>> plan = bl.plan(*arguments, tolerance=0.1, batch_sizes=(1, 4))
    >>> plan.error.total <= 0.1, plan.at(0.05).cost > plan.cost
    (True, True)
    >>> arguments = case.problem, plan.estimator, case.hyper, case.params, case.data
    >>> estimate, _ = bl.hypergradient(*arguments, jax.random.key(0))
    """
    owner = "bl.plan"
    require_smooth(owner, problem)
    require_variables("hyper", hyper)
    require_variables("params", params)
    require_plan_tolerance(tolerance)
    _require_settings(max_steps, budget, step_size, replicas, route)
    scheme = Scheme(momentum, nesterov, sampling)
    count = count_examples(data.inner)
    if batch_sizes is None:
        batch_sizes = (*choose_sizes(count, whole=scheme.shuffles), None)
    # Where batches walk through epochs, limits are those of as many different examples each.
    drawn = "without_replacement" if scheme.shuffles else sampling
    factors = {size: batch_factor(count, size, drawn) for size in batch_sizes}
    # In float64 whatever the precision: errors of 1e-3 are differences of larger numbers.
    with jax.enable_x64(True):
        hyper64, params64, data64 = as_float64(hyper), as_float64(params), as_float64(data)
        check_losses(problem, hyper64, params64, data64)
        flat = FlatProblem.from_problem(owner, problem, hyper64, params64, data64)
        fits = dense_route.fits_dense(len(flat.x), count, len(flat.theta))
        if (route or ("dense" if fits else "influence")) == "dense":
            measured = dense_route.analyse_densely(flat, factors, scheme, compare=compare)
        else:
            _require_no_comparison(compare, len(flat.x), count, len(flat.theta))
            require_exact_moments(scheme.describe(), len(flat.x), count, len(flat.theta))
            measured = influence_route.analyse_by_influence(flat, factors, seed)
        solution = flat.to_params(jnp.asarray(measured.solution))
    require_slope(measured.exact, measured.parts)
    planner = Planner(
        measured,
        to_hyper=partial(_like, hyper),
        params=jax.tree.map(lambda x, w: np.asarray(x, np.asarray(w).dtype), solution, params),
        count=count,
        step_size=step_size,
        replicas=replicas,
        max_steps=max_steps,
        budget=budget,
        scheme=scheme,
    )
    comparison = compare_estimators(planner) if compare else None
    return replace(planner.plan(tolerance), comparison=comparison)


def choose_sizes(count: int, *, whole: bool) -> tuple[int, ...]:
    """Return batch sizes to choose from; if ``whole``, the nearest below that divide ``count``."""
    sizes = [size for size in _BATCHES if size < count]
    if whole:
        sizes = [max(k for k in range(1, size + 1) if count % k == 0) for size in sizes]
    return tuple(dict.fromkeys(sizes))


def _require_settings(
    max_steps: int, budget: float, step_size: float | None, replicas: int | None, route: str | None
) -> None:
    """Raise unless the settings of a plan are in range."""
    require_positive_int("plan", "max_steps", max_steps)
    require_positive("plan", "budget", budget)
    if step_size is not None:
        require_positive("plan", "step_size", step_size)
    if replicas is not None:
        require_positive_int("plan", "replicas", replicas)
    if route not in (None, "dense", "influence"):
        raise ValueError(f"plan: route must be 'dense', 'influence' or None, got {route!r}.")


def _require_no_comparison(compare: bool, params: int, count: int, hyper: int) -> None:
    """Raise where a comparison is asked for and moments are not exact."""
    if compare:
        raise ValueError(
            "bl.plan: compare=True needs exact moments (route='dense'), for which "
            f"{params} params, {count} inner examples and {hyper} hyperparameters are too many. "
            "Plan on a part of the data, or leave it out."
        )


def _like(tree: PyTree, values: np.ndarray) -> PyTree:
    """Return ``values [p]`` as NumPy arrays in the structure of ``tree``."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = zip(np.split(values, ends), leaves, strict=True)
    return jax.tree.unflatten(structure, [part.reshape(np.shape(leaf)) for part, leaf in parts])
