r"""What noise leaves of a stationary run's hypergradient, read at an iterate or at an average.

An unrolled hypergradient is read at ``z = (x, D)``, an implicit one at ``x`` alone. With ``P`` the
stationary second moment of the linearised recursion, ``A`` its mean map and ``P_n`` the covariance
of the mean of n consecutive iterates,

    P_n = (1 / n^2) sum_{s,t<n} Cov(z_s, z_t),   Cov(z_{t+j}, z_t) = A^j P,   P_1 = P
    E h - h* ~ h'(shift of P) + h''[P_n] / 2,   Var h ~ h' P_n h'^T

Averaging shrinks ``P_n`` to the influence law ``C^{-1} Cov(F_i) C^{-T} p / n``, and leaves the
shift as it is. Parts: :mod:`bilevel.noise.linearised`, ``affine``, ``bias``, ``averaging``, and
``shuffled`` for epochs.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevel.core import Data, Problem
from bilevel.noise.hypergradients import bias
from bilevel.noise.hypergradients.error import HypergradientError
from bilevel.noise.moments import Affine, Linearised, Rule, epoch_moments, linearise
from bilevel.noise.quadratic.averaging import weighted_powers
from bilevel.utils import PyTree, require_positive_int, resolve_renamed

NEWTON_STEPS = 30


class StationaryError(NamedTuple):
    """A predicted ``error``, and whether it means anything: ``stable``, ``solved``, ``trusted``.

    ``stable`` : the step size is below the mean-square limit, so that second moments converge.
    ``solved`` : Newton's method arrived at a minimum, where the theory is set up.
    ``trusted`` : stable at twice the step size too, off quadratic losses at four times of it
    (:func:`trusted_share`). Nearer to the limit fourth moments diverge, so that most runs lie far
    within a standard deviation which a few of them make.
    """

    error: HypergradientError
    stable: Array
    solved: Array
    trusted: Array


def stationary_error(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    rule: Rule,
    *,
    batch_size: int | None,
    sampling: str = "iid",
    window: int = 1,
    implicit: bool = False,
) -> StationaryError:
    """Return bias and standard deviation of a hypergradient, by dense moments of size ``(s d)^2``.

    ``h'(shift of P) + h''[P_n] / 2`` and ``(h' P_n h'^T)^{1/2}``, ``n`` the ``window``.
    ``d`` is ``n (1 + p)``, or ``n`` if ``implicit``, and ``s`` the slots of ``rule``. To first
    order in the step size; on quadratic losses standard deviations are the delta method's.

    Parameters
    ----------
    params : near the minimiser: Newton's method starts there.
    rule : of the solver, without a leading axis: ``rules.sgd(step_size, momentum, nesterov)``.
    batch_size, sampling : of independent batches, as for :func:`bilevel.noise.batch_factor`.
    window : the number of last iterates that are averaged; 1 for the last alone.
    implicit : the derivative is solved for where the iterates are read, and is no iterate itself.

    Raises
    ------
    ValueError : as :func:`bilevel.noise.linearised.linearise`; ``window`` below 1.

    Examples
    --------
    >>> import bilevel as bl
    >>> from functools import partial
    >>> import jax
    >>> from bilevel.noise import prediction, rules
    >>> case = bl.testing.ridge(seed=0)
    >>> of = partial(prediction.stationary_error, case.problem, batch_size=2, window=100)
    >>> found = jax.jit(of)(case.hyper, case.params, case.data, rules.sgd(0.05))
    >>> found.error.standard_deviation.shape, bool(found.stable & found.solved)
    ((4,), True)
    """
    require_positive_int("prediction.stationary_error", "window", window)
    at = problem, hyper, params, data
    batches = {"batch_size": batch_size, "sampling": sampling}
    here = linearise(*at, **batches, newton_steps=NEWTON_STEPS, derivative=not implicit)
    moments, _ = here.process.stationary_with_margin(rule)
    second = moments.second.reshape(2 * (moments.mean.size,))
    read = average_covariance(here.process.mean_map(rule), second, window)
    return _judge(at, here, rule, second, read, implicit=implicit)


def epoch_error(
    problem: Problem,
    hyper: PyTree,
    params: PyTree,
    data: Data,
    rule: Rule,
    *,
    batch_size: int,
    window: int,
    implicit: bool = False,
) -> StationaryError:
    """Return the bias of a hypergradient read at the mean of whole shuffled epochs.

    ``h'(shift of the mean) + h''[P_N] / 2``: to first order in the step size the shift is that of
    :func:`bilevel.noise.shuffled.tail_average_shift` and, off quadratic losses, that of the
    covariance of iterates over epochs. The standard deviation is NaN: what noise feeds back decides
    it, for which there is no formula here. ``stable`` and ``trusted`` are those of independent
    batches. Arguments as for :func:`stationary_error`.

    Raises
    ------
    ValueError : as :func:`bilevel.noise.linearised.linearise` and
        :func:`bilevel.noise.shuffled.epoch_moments`.

    Examples
    --------
    >>> import bilevel as bl
    >>> from functools import partial
    >>> import jax
    >>> from bilevel.noise import prediction, rules
    >>> case = bl.testing.logistic(seed=0)  # 26 examples
    >>> of = partial(prediction.epoch_error, case.problem, batch_size=2, window=130)
    >>> found = jax.jit(of)(case.hyper, case.params, case.data, rules.sgd(0.05))
    >>> found.error.bias.shape, bool(found.stable & found.solved)
    ((1,), True)
    """
    at = problem, hyper, params, data
    here = linearise(*at, batch_size=batch_size, newton_steps=NEWTON_STEPS, derivative=not implicit)
    found = epoch_moments(here.process, rule, batch_size, window)
    moments = found.second, found.average
    judged = _judge(at, here, rule, *moments, drift=found.shift, implicit=implicit)
    unknown = jnp.full_like(judged.error.standard_deviation, jnp.nan)
    return judged._replace(error=judged.error._replace(standard_deviation=unknown))


def _judge(
    at: tuple[Problem, PyTree, PyTree, Data],
    here: Linearised,
    rule: Rule,
    second: Array,
    read: Array,
    *,
    drift: Array | float = 0.0,
    implicit: bool,
) -> StationaryError:
    """Return the error from the moments of what is read, and whether they mean anything."""
    d = here.process.offsets.shape[1]
    # Of the iterate, without the solver's other slots; numbers are float64 where JAX has that.
    second, read, drift = (
        jnp.asarray(x, here.solution.dtype) for x in (second[:d, :d], read[:d, :d], drift)
    )
    moments = here, second
    error = bias.hypergradient_error(*at, *moments, read=read, drift=drift, implicit=implicit)
    curved = jnp.linalg.norm(bias.mean_shift(*at, *moments)) > 1e-6 * jnp.trace(moments[1]) ** 0.5
    times = jnp.where(curved, 1 / trusted_share(False), 1 / trusted_share(True))
    # The derivative is stable exactly where the iterates are, which are fewer.
    iterates = _restrict(here.process, len(here.solution))
    _, margin = iterates.stationary_with_margin(rule)
    _, further = iterates.stationary_with_margin(_scaled(rule, times))
    return StationaryError(error, margin > 0, _solved(here), further > 0)


def average_covariance(mean_map: Array, second: Array, window: int) -> Array:
    """Return the covariance of the mean of ``window`` consecutive stationary iterates, ``[k, k]``.

    Exact.

    Parameters
    ----------
    mean_map, second : ``A`` and ``P``, ``[k, k]``.
    """
    later = weighted_powers(mean_map, window) @ second
    # Lag 0 stands in both sums over later iterates, and counts once.
    return (later + later.T - window * second) / window**2


def trusted_share(quadratic: bool) -> float:
    """Return up to which share of the mean-square limit of the step size theory is trusted.

    One half on quadratic inner losses, else one quarter: :class:`bilevel.Predicted` and
    :func:`bilevel.plan` keep to the same.

    Examples
    --------
    >>> from bilevel.noise import prediction
    >>> prediction.trusted_share(True), prediction.trusted_share(False)
    (0.5, 0.25)
    """
    return 1 / 2 if quadratic else 1 / 4


def _scaled(rule: Rule, times: Array) -> Rule:
    """Return the rule at so many times the step size, in all that moves the iterate."""
    return Rule(rule.transition.at[0, 1:].multiply(times), rule.gain.at[0].multiply(times))


def _restrict(process: Affine, part: int) -> Affine:
    """Return the first ``part`` coordinates, which do not depend on the others."""
    matrices, offsets = process.matrices[:, :part, :part], process.offsets[:, :part]
    return Affine(matrices, offsets, process.factor)


def _solved(here: Linearised) -> Array:
    """Return whether the next Newton step is rounding, and the Hessian positive definite."""
    n = len(here.solution)
    H = jnp.mean(here.process.matrices, 0)[:n, :n]
    step = jnp.linalg.solve(H, jnp.mean(here.process.offsets, 0)[:n])
    small = jnp.finfo(step.dtype).eps ** 0.5 * (1 + jnp.linalg.norm(here.solution))
    return (jnp.linalg.norm(step) <= small) & (jnp.linalg.eigvalsh((H + H.T) / 2)[0] > 0)


_RENAMED: dict[str, tuple[str, object]] = {
    "at_rest": ("stationary_error", stationary_error),
    "AtRest": ("StationaryError", StationaryError),
}


def __getattr__(name: str) -> object:
    """Return what an old name stands for, with a warning."""
    return resolve_renamed(__name__, _RENAMED, name)
