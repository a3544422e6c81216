r"""Shuffled epochs of any affine process and rule: where the mean ends, and what noise is left.

With ``A_i = T (x) I - L (x) C_i`` the map of one example (:mod:`bilevel.noise.rules`), ``A`` their
mean, ``z*`` the fixed point and ``e_i`` what example i adds there, an epoch visits all examples
once, in ``M = n / B`` batches whose noises have the sum 0. To leading order in the step size,

    E z - z* = -f / (M (M-1)) (1 - A)^-1 mean_i (A_i - A) [sum_{j<M-1} (M-1-j) A^j] e_i

with ``f = (n - B) / (B (n - 1))``: within an epoch the examples to come depend on those that were.
Independent batches have no such shift. Covariances are those of additive noise, exactly; noise that
feeds back is smaller by another factor of the step size. :mod:`bilevel.noise.epochs` has closed
forms of them where the Hessian is diagonal. Source: derived for this project.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.noise.batches import batch_factor
from bilevel.noise.moments.affine import Affine
from bilevel.noise.moments.rules import Rule
from bilevel.utils import require_positive_int

_DOUBLINGS = 50  # of the number of epochs: the slowest mode of float64 is forgotten


class EpochMoments(NamedTuple):
    """Moments of the iterates of a stationary run over epochs.

    ``shift [d]`` of the mean from the fixed point; ``second [d, d]``, the covariance of the
    iterates averaged over an epoch; ``average [d, d]``, that of the mean of whole epochs.
    """

    shift: Array
    second: Array
    average: Array


def count_epoch(owner: str, examples: int, batch_size: int) -> int:
    """Return the number of batches of an epoch, validated to be whole and two or more."""
    require_positive_int(owner, "batch_size", batch_size)
    batches, left = divmod(examples, batch_size)
    if left or batches < 2:
        raise ValueError(
            f"{owner}: an epoch must be two or more whole batches, got {examples} examples in "
            f"batches of {batch_size}. Take a batch size that divides their number."
        )
    return batches


def tail_average_shift(process: Affine, rule: Rule, batch_size: int) -> Array:
    r"""Return how far from the fixed point a long average over epochs ends, ``[d]``.

    The formula of this module; for plain SGD with the step size ``lam``, ``g_i = C_i z* - q_i``,

        E z - z* = -lam f / (M (M-1)) C^-1 mean_i (C_i - C) [sum_{j<M-1} (M-1-j) A^j] g_i

    Parameters
    ----------
    process : of the iterates, or of iterates and derivative together; its ``factor`` is not read.
    rule : ``rules.sgd(step_size, momentum)``, without a leading axis.
    batch_size : ``B``, a divisor of the number of examples n.

    Raises
    ------
    ValueError : ``n / B`` that is not a whole number of at least 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import Affine, rules, shuffled
    >>> curvatures, slopes = jnp.array([1.0, 3.0])[:, None, None], jnp.array([[1.0], [1.0]])
    >>> process = Affine(curvatures, slopes, 1.0)  # z* = 1/2
    >>> shuffled.tail_average_shift(process, rules.sgd(0.1), 1).round(4)
    Array([-0.0125], dtype=float32)
    """
    n, d = process.offsets.shape
    batches = count_epoch("shuffled.tail_average_shift", n, batch_size)
    each, mean, added = _around(process, rule)

    def add_power(sums: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        once, twice = sums  # sum_{j<r} A^j e, and the sum of these up to r
        once = added + once @ mean.T
        return (once, twice + once), None

    (_, sums), _ = jax.lax.scan(add_power, (0 * added, 0 * added), length=batches - 1)
    drift = jnp.mean(jnp.einsum("iab,ib->ia", each - mean, sums), 0)
    fraction = batch_factor(n, batch_size, "without_replacement") / (batches * (batches - 1))
    return -fraction * jnp.linalg.solve(jnp.eye(len(mean)) - mean, drift)[:d]


def epoch_moments(process: Affine, rule: Rule, batch_size: int, window: int) -> EpochMoments:
    r"""Return shift and covariances of iterates and of their mean over ``window`` steps.

    Within an epoch ``P' = A P A^T + S + A K + K^T A^T`` with ``S`` the covariance of one batch's
    noise and ``K = -sum_{j<k} A^j S / (M - 1)`` after k steps, from the ``P_e`` that an epoch
    repeats. As an epoch's noise has the sum 0, the mean of whole epochs is ``(1 - A)^-1 A (z_0 -
    z_N) / N``, with the covariance of these two ends.

    Parameters
    ----------
    process, rule, batch_size : as for :func:`tail_average_shift`.
    window : N, a number of whole epochs.

    Raises
    ------
    ValueError : as :func:`tail_average_shift`; a window that is no number of whole epochs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import Affine, epochs, rules, shuffled
    >>> q = jnp.array([[1.0], [-1.0], [2.0], [-2.0]])
    >>> process = Affine(jnp.broadcast_to(0.02 * jnp.eye(1), (4, 1, 1)), q, 1.0)
    >>> found = shuffled.epoch_moments(process, rules.sgd(0.1), 1, window=4)
    >>> closed = epochs.covariance(0.02 * jnp.eye(1), q.T @ q / 4, 0.1, 4)
    >>> bool(jnp.allclose(found.second, closed, rtol=1e-3))
    True
    """
    owner, (n, d) = "shuffled.epoch_moments", process.offsets.shape
    batches = count_epoch(owner, n, batch_size)
    require_positive_int(owner, "window", window)
    if window % batches:
        raise ValueError(
            f"{owner}: window={window} is no number of whole epochs, which have {batches} steps "
            f"each. Take {batches * max(round(window / batches), 1)}."
        )
    _, mean, added = _around(process, rule)
    factor = batch_factor(n, batch_size, "without_replacement")
    S, one = factor * added.T @ added / n, jnp.eye(len(mean), dtype=mean.dtype)

    def step(now: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        P, powers = now  # powers: sum_{j<k} A^j
        with_past = mean @ powers @ S / (batches - 1)
        P = mean @ P @ mean.T + S - with_past - with_past.T
        return (P, one + mean @ powers), P

    (fresh, _), within = jax.lax.scan(step, (0 * S, 0 * S), length=batches)

    def double(_: int, now: tuple[Array, Array]) -> tuple[Array, Array]:
        P, power = now
        return P + power @ P @ power.T, power @ power

    whole = jnp.linalg.matrix_power(mean, batches)
    end, _ = jax.lax.fori_loop(0, _DOUBLINGS, double, (fresh, whole))

    def forget(P: Array, _: None) -> tuple[Array, Array]:
        P = mean @ P @ mean.T
        return P, P

    _, left = jax.lax.scan(forget, end, length=batches)
    R = jnp.linalg.solve(one - mean, mean) / window
    lagged = jnp.linalg.matrix_power(mean, window) @ end
    average = R @ (2 * end - lagged - lagged.T) @ R.T
    shift = tail_average_shift(process, rule, batch_size)
    return EpochMoments(shift, jnp.mean(within + left, 0)[:d, :d], average[:d, :d])


def _around(process: Affine, rule: Rule) -> tuple[Array, Array, Array]:
    """Return ``A_i [n, s d, s d]``, their mean, and ``e_i [n, s d]`` at the fixed point."""
    maps = process.maps(rule)
    each, added = maps[:, :-1, :-1], maps[:, :-1, -1]
    mean = jnp.mean(each, 0)
    at = jnp.linalg.solve(jnp.eye(len(mean)) - mean, jnp.mean(added, 0))
    return each, mean, each @ at + added - at
