r"""What the steps of first-order solvers share: count, step size, proximal map.

A relative step size is a fraction of a limit that is measured at the beginning of each call,

    full batch:   limit = 2 (1 + mu) / k_max
    minibatches:  limit = 2 (1 - mu) / (max((1 - mu) / (1 + mu) - p, 0) k_max + p max_i |H_i|)

``mu`` is the momentum, ``k_max`` the largest curvature, ``H_i`` the Hessian of one example and
``p = 1 / batch_size`` the noise fraction of a batch. The second is a lower bound of the exact
mean-square limit (``noise.minibatch.step_limit``), from two numbers, as ``certificate`` there.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bilevel.core import (
    Composite,
    Loss,
    Relative,
    Setting,
    as_setting,
    as_setting_tree,
    count_examples,
    evaluate,
)
from bilevel.linear import dominant_eigenpair
from bilevel.utils import (
    Counter,
    DataTree,
    FloatTree,
    Hyper,
    Number,
    Params,
    PyTree,
    Scalar,
    axpy,
    norm,
)

_PRODUCTS = 6  # of Lanczos, from the vector of the call before: within a few per cent
_BATCHES = 16  # of rows in the sample on which a minibatch solver is measured, and
_ROWS = 256  # no fewer rows than these
_AT_ONCE = 32  # examples whose products are in memory together


SolverStepSize: TypeAlias = Setting | Relative


class MeasuredCount(NamedTuple):
    """The step count of a solver with a :class:`Relative` step size, and what was measured.

    ``limit`` (``()``) and ``vector`` (like ``params``) are kept as bits: a leaf that is no
    floating-point number has no derivative, and no estimator carries a tangent of it.
    """

    steps: Counter
    limit: Array
    vector: PyTree


StepCount: TypeAlias = Counter | MeasuredCount


def as_step_size(owner: str, value: SolverStepSize) -> SolverStepSize:
    """Return a checked step size."""
    return value if isinstance(value, Relative) else as_setting(owner, "step_size", value)


def as_step_sizes(owner: str, value: SolverStepSize) -> SolverStepSize:
    """Return a checked step size, or one for each part of the params."""
    return value if isinstance(value, Relative) else as_setting_tree(owner, "step_size", value)


def restart_count(count: StepCount, *settings: PyTree) -> StepCount:
    """Return the count to begin a call with: 0 where a setting is a hyperparameter itself.

    So one number for each step of a call is the same schedule in every call, and no index is out of
    its range.
    """
    learned = [setting for setting in settings if getattr(setting, "sees_hyper", False)]
    if all(getattr(setting, "continues", False) for setting in learned):
        return count
    zero = jnp.zeros((), jnp.int32)
    return count._replace(steps=zero) if isinstance(count, MeasuredCount) else zero


def init_count(step_size: SolverStepSize, params: Params) -> StepCount:
    """Return the count 0; of a relative step size with a limit that no call has measured yet."""
    zero = jnp.zeros((), jnp.int32)
    if not isinstance(step_size, Relative):
        return zero
    unknown = jnp.full((), jnp.nan, jnp.float32)
    return MeasuredCount(zero, _to_bits(unknown), jax.tree.map(_to_bits, _mix(params)))


def advance_count(count: StepCount) -> StepCount:
    """Return the count one step on."""
    return count._replace(steps=count.steps + 1) if isinstance(count, MeasuredCount) else count + 1


def plain_count(count: StepCount) -> Counter:
    """Return the number of steps taken; ``()``."""
    return count.steps if isinstance(count, MeasuredCount) else count


def evaluate_step_size(step_size: SolverStepSize, count: StepCount, hyper: Hyper) -> FloatTree:
    """Return the step size at this count."""
    if not isinstance(step_size, Relative):
        return evaluate(step_size, plain_count(count), hyper)
    assert isinstance(count, MeasuredCount)
    fraction = evaluate(step_size.fraction, count.steps, hyper)
    limit = _to_floats(count.limit, jnp.float32)
    return jax.tree.map(lambda share: share * limit, fraction)


def measure_limit(
    count: StepCount,
    loss: Loss,
    params: Params,
    hyper: Hyper,
    data: DataTree,
    *,
    batch_size: int | None = None,
    momentum: Number = 0.0,
    scale: Number = 1.0,
) -> StepCount:
    """Return the count with the limit at ``params`` and ``hyper``; a plain count as it is.

    The limit is that of the heavy ball times ``scale``, a property of the solver.
    """
    if not isinstance(count, MeasuredCount):
        return count
    params, hyper = jax.lax.stop_gradient((params, hyper))
    n = count_examples(data)
    p = 0.0 if batch_size is None or batch_size >= n else 1 / batch_size
    if p:
        data = _sample(data, n, min(n, max(round(_BATCHES / p), _ROWS)))
    start = jax.tree.map(lambda bits, w: _to_floats(bits, w.dtype), count.vector, params)
    curvature, vector = _largest_curvature(loss, params, hyper, data, start)
    slowed = 1 + momentum
    if p:
        single = _largest_of_examples(loss, params, hyper, data)
        share = (1 - momentum) / (1 + momentum)
        curvature = jnp.maximum(share - p, 0) * curvature + p * jnp.maximum(single, curvature)
        slowed = 1 - momentum
    limit = 2 * slowed / jnp.where(curvature == 0, 2, curvature)  # of no curvature any will do
    limit = jnp.asarray(scale * limit, jnp.float32)
    return MeasuredCount(count.steps, _to_bits(limit), jax.tree.map(_to_bits, vector))


def apply_prox(loss: Loss, params: Params, hyper: Hyper, size: Number) -> Params:
    """Apply the proximal map of ``loss``, if any, in the dtypes of ``params``."""
    if not isinstance(loss, Composite):
        return params
    moved = loss.prox(params, hyper, size)
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), moved, params)


def _largest_curvature(
    loss: Loss, params: Params, hyper: Hyper, data: DataTree, start: Params
) -> tuple[Scalar, Params]:
    """Return the largest ``|eigenvalue|`` of the Hessian, ``()``, and its vector, by Lanczos."""
    _, hvp = jax.linearize(lambda w: jax.grad(loss)(w, hyper, data), params)
    # The vector of the call before may have nothing of the direction that has the largest
    # curvature now, as where the penalty of another column has grown: hence the second half.
    return dominant_eigenpair(hvp, axpy(1, _unit(_mix(params)), _unit(start)), _PRODUCTS)


def _unit(v: Params) -> Params:
    size = norm(v)
    return jax.tree.map(lambda x: x / jnp.where(size > 0, size, 1).astype(x.dtype), v)


def _largest_of_examples(loss: Loss, params: Params, hyper: Hyper, data: DataTree) -> Scalar:
    """Return the largest ``|H_i|`` by two products with the Hessian of each; ``()``."""

    def one(row: DataTree) -> Array:
        batch = jax.tree.map(lambda leaf: leaf[None], row)
        _, hvp = jax.linearize(lambda w: jax.grad(loss)(w, hyper, batch), params)
        return norm(hvp(_unit(hvp(_mix(params)))))  # it has a handful of directions

    return jnp.max(jax.lax.map(one, data, batch_size=_AT_ONCE))


def _sample(data: DataTree, n: int, rows: int) -> DataTree:
    """Return ``rows`` of the n rows, spread by the golden ratio, which no order of rows favours."""
    if rows == n:
        return data
    picked = jnp.asarray([int(k * 0.6180339887498949 % 1 * n) for k in range(rows)], jnp.int32)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[picked], data)


def _mix(params: Params) -> Params:
    """Return numbers of -1 to 1 without a pattern, like ``params``, from the index of an entry."""

    def hashed(leaf: Array) -> Array:
        k = (jnp.arange(leaf.size, dtype=jnp.uint32) + 1) * jnp.uint32(2654435761)
        k = (k ^ (k >> 15)) * jnp.uint32(2246822519)
        k = k ^ (k >> 13)
        return (k.astype(jnp.float32) / 2.0**31 - 1).astype(leaf.dtype).reshape(leaf.shape)

    return jax.tree.map(hashed, params)


def _to_bits(leaf: Array) -> Array:
    return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")


def _to_floats(bits: Array, dtype: DTypeLike) -> Array:
    return jax.lax.bitcast_convert_type(bits, dtype)
