r"""Prediction: the noise of one SGD hypergradient from theory, with no second run.

With one influence value per inner example where the last N stationary iterates are averaged, or the
stationary moments of the linearised recursion of iterate and derivative where that is small,

    standard_error^2 = p Var_i(psi_i) / N   or   h' P_N h'^T,      bias = h'(shift) + h''[P_N] / 2

(:mod:`bilevel.noise.influence`, :mod:`bilevel.noise.prediction`; p the noise fraction of a batch).
The recursion: Iutzeler, Pauwels, Vaiter, NeurIPS 2024; the shift: Dieuleveut, Durmus, Bach,
Annals of Statistics 2020.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.core import Counts, Data, Estimate, Estimator, InnerState, Problem, Relative
from bilevel.estimators.implicit import Implicit
from bilevel.estimators.predicted_refusals import (
    DENSE,
    require_constant,
    require_covered,
    require_dense,
    require_whole_epochs,
)
from bilevel.noise import influence, prediction, rules
from bilevel.solvers import SGD, Solver
from bilevel.utils import (
    Hyper,
    Key,
    Number,
    Params,
    PyTree,
    axpy,
    norm,
    register_node,
    require_smooth,
    size,
    zeros_like,
)


class Theory(NamedTuple):
    """``standard_error`` and ``bias``, like ``hyper``; the ``counts`` of what they took.

    ``bias`` is ``None`` where only influence values were formed, ``standard_error`` over epochs.
    Infinite says that there is no such number: the step size is beyond its mean-square limit, or no
    minimum was found.
    """

    standard_error: PyTree
    bias: PyTree
    counts: Counts


_TRUST_PRODUCTS = 10  # of Lanczos, of single examples, and two of the whole loss


@dataclass(frozen=True)
class Predicted:
    """Any ``Forward``, ``Reverse`` or ``Implicit`` on SGD, its noise predicted by theory.

    Runs the estimator as it is and fills ``evidence.standard_error`` and ``evidence.bias``. The
    theory describes stationary SGD around one minimum: the start forgotten, a constant step size,
    with or without momentum, batches of one size, drawn with or without replacement. It is exact
    for a quadratic inner loss (standard deviations to leading order), else right up to a relative
    error O(step size). :func:`bilevel.check_noise` sets it beside replication, which assumes
    nothing.

    Two routes. While iterate and derivative together have at most 40 entries (``n (1 + p)``; ``n``
    for ``Implicit``; twice that with momentum) the moments are solved for densely, for any
    averaging window, with the bias. Above, only averages have a prediction: influence values, by
    conjugate gradients and one pass over the inner examples for each hyperparameter. They hold for
    windows well above ``1 / (step size x curvature)``, and say nothing of the bias (``None``).

    Over shuffled epochs (``sampling="epoch"``) the dense route gives the bias of an average of
    whole epochs, and no standard error (``None``; :class:`Replicated` around it measures one).

    Predictions are infinite above half of the mean-square limit of the step size, a quarter off
    quadratic losses (as :func:`bilevel.plan`): there a few large excursions make most of a standard
    deviation, and single runs do not show it. The limit is exact on the dense route; above, it is
    the lower bound that a :class:`bilevel.Relative` step size is a fraction of.

    The prediction's products and passes are added to ``counts``. A solver without minibatches has
    no noise: both fields are 0. Neither knows about a start that was not forgotten: that shows in
    ``inner_residual``.

    Parameters
    ----------
    estimator : ``Forward`` (all directions, no cross-sampling), ``Reverse`` (not truncated) or
        ``Implicit`` (not damped).

    Raises
    ------
    ValueError : another estimator; a solver other than SGD at a constant step size and momentum;
        ``problem.prox`` or ``problem.start``; a last iterate, or epochs, too large for the dense
        route; over epochs, steps, an average or examples that are not whole epochs or batches.

    Examples
    --------
    >>> import bilevel as bl
    >>> solver = bl.SGD(step_size=0.1, batch_size=32)
    >>> estimator = bl.Predicted(bl.Forward(solver, steps=1000, average=500))
    """

    estimator: Estimator

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if callable(getattr(self.estimator, "step", None)):  # else a placeholder of JAX
            require_covered(self.estimator)

    @property
    def solver(self) -> Solver | None:
        """The inner solver: :func:`bilevel.tune` asks it why it diverged."""
        return getattr(self.estimator, "solver", None)

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the estimator's own state."""
        return self.estimator.init(params, data)

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Take a step of the estimator; the theory at the params that it ends with."""
        estimate, lower = self.estimator.step(problem, hyper, lower, data, key)
        theory = self.theory(problem, hyper, lower.params, data)
        evidence = replace(
            estimate.evidence,
            standard_error=theory.standard_error,
            bias=theory.bias,
            counts=Counts(*map(jnp.add, estimate.evidence.counts, theory.counts)),
        )
        return replace(estimate, evidence=evidence), lower

    def theory(self, problem: Problem, hyper: Hyper, params: Params, data: Data) -> Theory:
        """Return what theory says at ``params`` near the minimiser; nothing is run."""
        require_smooth("Predicted", problem)
        solver = require_constant(self.solver)
        if solver is None:
            nothing = zeros_like(hyper)
            return Theory(nothing, nothing, Counts.of())
        implicit, window = _read(self.estimator)
        n, p = size(params), size(hyper)
        d = (n if implicit else n * (1 + p)) * (1 if solver.momentum is None else 2)
        require_dense(d, window, solver.sampling)
        if d <= DENSE:
            return _dense(problem, hyper, params, data, self.estimator, solver)
        found = influence.compute_influence(problem, hyper, params, data, implicit=implicit)
        deviation = found.standard_deviation(window, solver.batch_size, solver.sampling)
        holds = (found.residual < 0.1) & _is_trusted(problem, hyper, params, data, solver)
        deviation = jnp.where(holds, deviation, jnp.inf)
        counts = Counts.of(gradients=p, hvps=found.matvecs + 3 * p + _TRUST_PRODUCTS)
        return Theory(_like(hyper, deviation), None, counts)


register_node(Predicted)


def _is_trusted(problem: Problem, hyper: Hyper, params: Params, data: Data, solver: SGD) -> Array:
    """Return whether the step size is a small enough share of the limit that ``Relative`` has."""
    whole = replace(solver, step_size=Relative(1.0))
    state = whole.init(params, data.inner)
    state = whole.measure(problem.inner, params, hyper, data.inner, state)
    share = whole.max_curvature(hyper, state) / solver.max_curvature(hyper, state)
    # A direction without a pattern, such as no invariance of a loss has.
    v = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)

    def product(at: Params) -> Params:
        return jax.jvp(lambda w: jax.grad(problem.inner)(w, hyper, data.inner), (at,), (v,))[1]

    # On a quadratic loss a product is the same everywhere.
    here, there = product(params), product(axpy(1, v, params))
    curved = norm(axpy(-1, here, there)) > 1e-3 * norm(here)
    allowed = jnp.where(curved, prediction.trusted_share(False), prediction.trusted_share(True))
    return share <= allowed


def _dense(
    problem: Problem, hyper: Hyper, params: Params, data: Data, estimator: Estimator, solver: SGD
) -> Theory:
    """Predict by the functions of :mod:`bilevel.noise.hypergradients.prediction`."""
    implicit, window = _read(estimator)
    # Numbers, which `require_constant` has made sure of.
    step_size, momentum = cast(Number, solver.step_size), cast(Number | None, solver.momentum)
    rule = rules.sgd(step_size, momentum, solver.nesterov)
    at = problem, hyper, params, data, rule
    epochs = solver.sampling == "epoch"
    if epochs:
        batch = require_whole_epochs(estimator, solver, data)
        found = prediction.epoch_error(*at, batch_size=batch, window=window, implicit=implicit)
    else:
        batches = {"batch_size": solver.batch_size, "sampling": solver.sampling}
        found = prediction.stationary_error(
            *at, **batches, window=max(window, 1), implicit=implicit
        )
    holds = found.stable & found.solved & found.trusted

    def tree(values: Array) -> PyTree:
        return _like(hyper, jnp.where(holds, values, jnp.inf))

    n, p = size(params), size(hyper)
    counts = Counts.of(gradients=1, hvps=(prediction.NEWTON_STEPS + 1) * n + n * (1 + p))
    deviation = None if epochs else tree(found.error.standard_deviation)
    return Theory(deviation, tree(found.error.bias), counts)


def _like(hyper: Hyper, values: Array) -> PyTree:
    """Return ``[p]`` in the order of ``ravel_pytree`` as a tree like ``hyper``."""
    flat, unravel = ravel_pytree(hyper)
    return unravel(values.astype(flat.dtype))


def _read(estimator: Estimator) -> tuple[bool, int]:
    """Return whether the hypergradient is implicit, and how many iterates are averaged."""
    return isinstance(estimator, Implicit), getattr(estimator, "average", 0)
