r"""Exact second moments of any affine stochastic iteration: the dense oracle.

    z' = z - eta mean_{i in batch} (C_i z - q_i)

in coordinates of any origin, and any rule (:mod:`bilevel.noise.rules`) in place of plain SGD. No
structure is used: with ``A_i = T (x) I - L (x) C_i``, a step is, in homogeneous coordinates,

    P~' = (1 - p) Abar P~ Abar^T + p mean_i A~_i P~ A~_i^T,   P~ = [[E z z^T, E z], [E z^T, 1]]

(p is the noise fraction of a batch; Mulayoff and Michaeli, COLT 2024, for the mixture). The
structured processes of this package are tested against it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from bilevel.noise.moments.rows import require_shape
from bilevel.noise.moments.rules import Rule, outer_product
from bilevel.utils import RenamedMethod, is_traced, register_node


class Moments(NamedTuple):
    """The ``mean`` ``E z``, ``[s, n(, p)]``, and ``second`` moments ``E z z^T``, ``[s, n, s, n]``.

    With a trailing axis p in the mean, the second moment is summed over it: ``sum_j E z_j z_j^T``.
    """

    mean: Array
    second: Array

    def squared_error(self, slot: int = 0) -> Array:
        """Return ``E |z|^2`` of one slot; ``()``."""
        return jnp.trace(self.second[slot, :, slot])


@dataclass(frozen=True)
class Affine:
    r"""An affine stochastic iteration ``z' = T z - L mean_batch (C_i z - q_i)``.

    Parameters
    ----------
    matrices, offsets : ``C [m, d, d]`` and ``q [m, d]``.
    factor : noise fraction p of a batch, :func:`bilevel.noise.batch_factor`.

    Raises
    ------
    ValueError : shapes that do not fit together.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import Affine, rules
    >>> A = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> process = Affine(A[:, :, None] * A[:, None, :], 0.1 * A, 0.5)
    >>> moments = process.step(process.start(jnp.ones(2)), rules.sgd(0.1))
    >>> moments.second.shape
    (1, 2, 1, 2)
    """

    matrices: Array
    offsets: Array
    factor: float | Array

    def __post_init__(self) -> None:
        """Check shapes; structures without shapes (tracing internals) pass."""
        if hasattr(self.matrices, "shape") and hasattr(self.offsets, "shape"):
            m, d = self.offsets.shape
            require_shape("Affine.matrices", self.matrices, (m, d, d), "as many as offsets [m, d]")

    def start(self, z: Array, slots: int = 1) -> Moments:
        """Return the moments at a known point ``z [d]``; the other slots are 0."""
        mean = jnp.zeros((slots, *jnp.shape(z)), jnp.result_type(z, float)).at[0].set(z)
        return Moments(mean, outer_product(mean, mean))

    def step(self, moments: Moments, rule: Rule) -> Moments:
        """Return the moments after one step."""
        (s, d), n = moments.mean.shape, moments.mean.size
        flat, mean = moments.second.reshape(n, n), moments.mean.reshape(n)
        state = jnp.block([[flat, mean[:, None]], [mean[None, :], jnp.ones((1, 1))]])
        each = self.maps(rule)
        whole = jnp.mean(each, 0)
        single = jnp.einsum("iab,bc,idc->ad", each, state, each) / len(each)
        after = (1 - self.factor) * whole @ state @ whole.T + self.factor * single
        return Moments(after[:n, n].reshape(s, d), after[:n, :n].reshape(s, d, s, d))

    def fixed_point(self) -> Array:
        """Return the mean of the stationary law, ``mean(C)^{-1} mean(q)``, ``[d]``."""
        return jnp.linalg.solve(jnp.mean(self.matrices, 0), jnp.mean(self.offsets, 0))

    def stationary(self, rule: Rule) -> Moments:
        """Return the limit of :meth:`step`, by one dense solve of size ``(s d)^2``.

        Raises
        ------
        ValueError : no limit exists, because the second moments grow.
        """
        moments, margin = self.stationary_with_margin(rule)
        _require_stable(margin)
        return moments

    def stationary_with_margin(self, rule: Rule) -> tuple[Moments, Array]:
        """Return :meth:`stationary`, and a margin ``()``.

        Positive exactly where the moments converge.
        """
        d, s = self.offsets.shape[1], rule.slots
        slots = _stationary_mean(rule, self.fixed_point())
        mean = Moments(slots, jnp.zeros((s, d, s, d), slots.dtype))
        source = self.step(mean, rule).second.reshape(s * d, s * d)
        each = self.maps(rule)[:, :-1, :-1]
        whole = jnp.mean(each, 0)
        pairs = jnp.einsum("iab,icd->acbd", each, each) / len(each)
        lifted = (1 - self.factor) * jnp.kron(whole, whole)
        lifted += self.factor * pairs.reshape((s * d) ** 2, (s * d) ** 2)
        # The answer to the source I is positive definite exactly where the moments converge.
        both = jnp.stack([source.reshape(-1), jnp.eye(s * d).reshape(-1)], 1)
        solved = jnp.linalg.solve(jnp.eye((s * d) ** 2) - lifted, both)
        answer = solved[:, 1].reshape(s * d, s * d)
        moments = Moments(slots, solved[:, 0].reshape(s, d, s, d))
        return moments, jnp.linalg.eigvalsh(answer + answer.T)[0]

    settle = RenamedMethod("stationary_with_margin")

    def mean_map(self, rule: Rule) -> Array:
        """Return the map of one step on the mean's deviation from stationarity, ``[s d, s d]``."""
        return jnp.mean(self.maps(rule)[:, :-1, :-1], 0)

    def maps(self, rule: Rule) -> Array:
        """Return the homogeneous maps of the single examples, ``[m, s d + 1, s d + 1]``."""
        (m, d), s = self.offsets.shape, rule.slots
        reads = jnp.zeros(s, self.offsets.dtype).at[0].set(1)
        noisy = jnp.einsum("a,b,ijk->iajbk", rule.gain, reads, self.matrices)
        fixed = jnp.kron(rule.transition, jnp.eye(d))
        linear = fixed - noisy.reshape(m, s * d, s * d)
        shift = jnp.einsum("a,ij->iaj", rule.gain, self.offsets).reshape(m, s * d, 1)
        bottom = jnp.zeros((m, 1, s * d + 1), linear.dtype).at[:, 0, -1].set(1)
        return jnp.concatenate([jnp.concatenate([linear, shift], 2), bottom], 1)


register_node(Affine, ["matrices", "offsets", "factor"], [])


def _stationary_mean(rule: Rule, z: Array) -> Array:
    """Return the stationary mean of all slots, where that of slot 0 is ``z``."""
    s = rule.slots
    mean = jnp.zeros((s, *z.shape), z.dtype).at[0].set(z)
    if s == 1:
        return mean
    others = jnp.eye(s - 1) - rule.transition[1:, 1:]
    return mean.at[1:].set(jnp.linalg.solve(others, jnp.outer(rule.transition[1:, 0], z)))


def _require_stable(margin: Array) -> None:
    """Raise unless the stationary moment of unit noise is positive definite."""
    if not is_traced(margin) and not margin > 0:
        raise ValueError(
            "Affine.stationary: the step size is beyond the mean-square limit: second moments grow "
            "without bound, so there is no stationary covariance. Use a smaller step size or a "
            "larger batch."
        )
