r"""What shuffled epochs make of iterate and derivative, by following some orders of the examples.

A run over epochs is a chain of independent affine maps, one an epoch: ``z_M = F z_0 + f`` with ``F
= A_M .. A_1`` for the M batches of one order, ``A_b = T (x) I - L (x) C_b``. No closed form of the
mean of ``F (x) F`` over all orders is known. Up to six examples all orders are followed, so that
means are exact; above, some hundred random ones. The mean of ``f``, which is small beside its
spread, is then that of ``f - a - b``, plus what is known of ``a`` and ``b``, its parts of first and
second order in the deviations of the batches ``A_b - A`` and ``e_b``:

    a' = A a + e_b,  E a = 0;    b' = A b + (A_b - A) a,  E (A_b - A) A^j e_c = -v_j / (M - 1)

with ``v_j = (n - B) / (B (n - 1)) mean_i (A_i - A) A^j e_i`` (:mod:`bilevel.noise.shuffled`).
Derived for this project.
"""

import itertools
from functools import partial
from typing import NamedTuple

import numpy as np

from bilevel.noise.moments import count_epoch
from bilevel.planning.local import Examples
from bilevel.planning.refusals import require_followed

_FEW = 6  # examples, of which all orders are followed
_FEWEST, _MOST = 64, 256  # random orders: errors of 9 and of 4 % of a normal noise
_WORK = 5e8  # multiplications for one step size: a second


class Followed(NamedTuple):
    """Affine maps of K orders, ``[K, N, 1 + p, N + 1]``: of ``u``, and of ``E_j`` beside it.

    Each row of the third axis maps the iterate's slots and a constant 1; ``E_j`` moves by the map
    of ``u`` besides. ``rest [K, N, 1 + p]`` is the constant without its first and second order,
    ``known [N, 1 + p]`` the mean of these.
    """

    maps: np.ndarray
    rest: np.ndarray
    known: np.ndarray


class Epoch(NamedTuple):
    """An epoch of ``steps``, by its ``end`` and by the ``mean`` over its steps.

    ``within``: second moments ``E u z^T [1 + p, n, n]`` of the steps of an epoch that begins at the
    solution, averaged. ``sampled``: whether there are more orders than those that were followed.
    """

    end: Followed
    mean: Followed
    within: np.ndarray
    steps: int
    sampled: bool


class Gradients:
    """The joint gradients of the examples, as maps of the iterate and of the derivative."""

    def __init__(self, examples: Examples) -> None:
        """Arrange the arrays with hyperparameters late; the means are those of all examples."""
        H, g, e, T = examples
        self.curvature, self.coupling = H, T.transpose(1, 2, 0, 3)  # [m, n, p, n]
        self.values = np.concatenate([g[:, :, None], e.transpose(1, 2, 0)], 2)  # [m, n, 1 + p]
        self.values = self.values - np.mean(self.values, 0)
        self.means = np.mean(H, 0), np.mean(self.coupling, 0)

    def act(self, H: np.ndarray, T: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Return ``C z``, ``[..., n, 1 + p, c]``; ``H [..., n, n]`` and ``T [..., n, p, n]``."""
        n, both, c = z.shape[-3:]
        moved = (H @ z.reshape(*z.shape[:-2], both * c)).reshape(z.shape)
        own = T.reshape(*T.shape[:-3], -1, n) @ z[..., 0, :]
        moved[..., 1:, :] += own.reshape(*own.shape[:-2], n, both - 1, c)
        return moved


def choose_orders(gradients: Gradients, slots: int, batch_size: int) -> np.ndarray:
    """Return all orders of a few examples, else as many random ones as take seconds; ``[K, m]``.

    Raises
    ------
    ValueError : epochs that are not two or more whole batches; too large a problem.
    """
    m, n, both = gradients.values.shape
    batches, size = count_epoch("bl.plan, sampling='epoch'", m, batch_size), slots * n
    if m <= _FEW:
        return np.array(list(itertools.permutations(range(m))))
    count = int(min(_MOST, _WORK / (batches * size**2 * (size + 1) * both)))
    require_followed(count, _FEWEST, size, batches)
    rows = np.tile(np.arange(m), (count, 1))
    return np.random.default_rng(0).permuted(rows, axis=1)


def follow_orders(
    gradients: Gradients, rule: tuple[np.ndarray, np.ndarray], batch_size: int, orders: np.ndarray
) -> Epoch:
    """Return the maps of an epoch in each of the ``orders``, with ``rule`` T and L."""
    step = partial(move_slots, rule)
    values, (H, T) = gradients.values, gradients.means
    (count, m), (_, n, both) = orders.shape, values.shape
    size, batches = n * len(rule[1]), m // batch_size
    maps = np.zeros((count, size, both, size + 1))
    maps[:, :, 0, :size] = np.eye(size)
    first = second = np.zeros((count, size, both, 1))
    totals, within = [np.zeros_like(maps), np.zeros_like(first)], np.zeros((both, n, n))
    for rows in orders.reshape(count, batches, batch_size).transpose(1, 0, 2):
        H_b, T_b = np.mean(gradients.curvature[rows], 1), np.mean(gradients.coupling[rows], 1)
        noise = np.mean(values[rows], 1)[..., None]
        gradient = gradients.act(H_b, T_b, maps[:, :n])
        gradient[..., -1:] += noise
        maps = step(maps, gradient)
        fed = gradients.act(H_b - H, T_b - T, first[:, :n])
        second = step(second, gradients.act(H, T, second[:, :n]) + fed)
        first = step(first, gradients.act(H, T, first[:, :n]) + noise)
        totals = [totals[0] + maps, totals[1] + first + second]
        added = maps[:, :n, :, -1]
        within += np.einsum("ka,kbj->jab", added[:, :, 0], added) / (count * batches)
    ends, means = known_parts(gradients, rule, batch_size, batches)
    low = (first + second)[..., 0], totals[1][..., 0] / batches
    end = Followed(maps, maps[..., -1] - low[0], ends)
    whole = totals[0] / batches
    mean = Followed(whole, whole[..., -1] - low[1], means)
    return Epoch(end, mean, within, batches, m > _FEW)


def known_parts(
    gradients: Gradients, rule: tuple[np.ndarray, np.ndarray], batch_size: int, batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of ``b`` over all orders at the end, and over the steps; ``[N, 1 + p]``."""
    step = partial(move_slots, rule)
    (H, T), values = gradients.means, gradients.values
    (m, n, both), size = values.shape, len(rule[1]) * values.shape[1]
    H_i, T_i = gradients.curvature - H, gradients.coupling - T
    later = step(np.zeros((m, size, both, 1)), values[..., None])  # A^j e_i
    factor = -(m - batch_size) / (batch_size * (m - 1) * (batches - 1))
    now, drift = np.zeros((size, both, 1)), np.zeros((n, both, 1))
    total = now
    for _ in range(batches):
        now = step(now, gradients.act(H, T, now[:n]) + drift)
        drift = drift + factor * np.mean(gradients.act(H_i, T_i, later[:, :n]), 0)
        later = step(later, gradients.act(H, T, later[:, :n]))
        total = total + now
    return now[..., 0], total[..., 0] / batches


def move_slots(
    rule: tuple[np.ndarray, np.ndarray], z: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Return ``T z - L gradient``, slots and coordinates of z along its third axis from the end."""
    transition, gain = rule
    slots = z.reshape(*z.shape[:-3], len(gain), gradient.shape[-3], *z.shape[-2:])
    after = np.einsum("ab,...bnjc->...anjc", transition, slots)
    after -= gain[:, None, None, None] * gradient[..., None, :, :, :]
    return after.reshape(z.shape)
