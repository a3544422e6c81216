r"""Inner work that grows when the hypergradient drowns in its noise, and only then.

Far from the optimum a rough hypergradient will do; near it the same noise is all that is left. With
means over the recent outer steps, since one estimate's ratio is noise itself,

    snr^2 = mean |grad|^2 / mean |standard_error|^2 - 1      (E |grad|^2 = |E grad|^2 + noise)

and work is doubled when ``snr < target``. Work is the number of inner steps with the window that is
averaged over, or the number of random directions: the noise falls like 1 / sqrt(work), and nothing
that a run carries changes its shape. Counts of steps are static, so each level is a program of its
own, compiled when it is reached: O(log work) of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Estimate
from bilevel.estimators.base import Estimator
from bilevel.estimators.rebuild import scale_work
from bilevel.tuning.history import joined
from bilevel.utils import PyTree, dtype, register_node, vdot
from bilevel.utils.validation import require_positive


@dataclass(frozen=True)
class Adaptive:
    """When :func:`bilevel.tune` doubles the inner work: ``tune(..., adaptive=Adaptive(...))``.

    Parameters
    ----------
    target : signal-to-noise ratio ``|E grad| / |standard_error|`` below which work is doubled.
    memory : outer steps that the ratio is a mean over, and at least to wait after a doubling.
    most : work never exceeds this many times the estimator's own.

    Raises
    ------
    ValueError : a number that is not positive, ``most`` below 2.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.Adaptive(target=3.0).most
    64
    """

    target: Any = 2.0
    memory: Any = 4
    most: Any = 64

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("target", "memory", "most"):
            require_positive("Adaptive", name, getattr(self, name))
        if isinstance(self.most, int | float) and self.most < 2:
            raise ValueError(f"Adaptive: most must be at least 2 for any growth, got {self.most}.")


@dataclass(frozen=True)
class Work:
    """How much inner work a run does, and what it has seen since that is so, all ``()``.

    Parameters
    ----------
    level : work is ``2 ** level`` times the estimator's own; 0 unless adaptive.
    seen : estimates since the last doubling.
    power, noise : recent means of ``|grad|^2`` and ``|standard_error|^2``.
    """

    level: Array
    seen: Array
    power: Array
    noise: Array

    @classmethod
    def least(cls, like: PyTree) -> "Work":
        """That of the estimator as it is."""
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), dtype(like))
        return cls(none, none, zero, zero)

    @property
    def times(self) -> Array:
        """The multiple of the estimator's own work."""
        return 2**self.level

    @property
    def ratio(self) -> Array:
        """The signal-to-noise ratio; infinite without noise."""
        quiet = self.noise == 0
        squared = jnp.where(quiet, jnp.inf, self.power / jnp.where(quiet, 1, self.noise) - 1)
        return jnp.sqrt(jnp.maximum(squared, 0))


for _node in (Adaptive, Work):
    register_node(_node)


def observe(adaptive: Adaptive | None, work: Work, estimate: Estimate) -> Work:
    """The work of the next outer step, after this estimate."""
    if adaptive is None:
        return work
    now = _including(adaptive, work, estimate)
    enough = (now.ratio >= adaptive.target) | (now.seen < adaptive.memory)
    stay = enough | (2 * work.times > adaptive.most)
    more = replace(Work.least(work.power), level=work.level + 1)
    return jax.tree.map(lambda a, b: jnp.where(stay, a, b), now, more)


def columns(adaptive: Adaptive | None, work: Work, estimate: Estimate) -> dict[str, Array]:
    """What the history says of an estimate made with this work: its multiple, and the ratio."""
    if adaptive is None:
        return {}
    ratio = _including(adaptive, work, estimate).ratio
    return {"work": work.times, "signal_to_noise": ratio}


def _including(adaptive: Adaptive, work: Work, estimate: Estimate) -> Work:
    """The same level, with one more estimate in its means."""
    share = 1 / jnp.minimum(work.seen + 1, adaptive.memory)

    def mean(old: Array, new: PyTree) -> Array:
        return (old + share * (vdot(new, new) - old)).astype(old.dtype)

    power = mean(work.power, estimate.grad)
    noise = mean(work.noise, estimate.evidence.standard_error)
    return Work(work.level, work.seen + 1, power, noise)


def require_adaptive(estimator: Any, standard_error: PyTree) -> None:
    """Raise unless the estimator knows its noise and can reduce it."""
    if standard_error is None:
        raise ValueError(
            f"adaptive=True compares the hypergradient with its standard error, and {estimator!r} "
            "reports none. Wrap it: Replicated(estimator, n) measures it, Predicted(estimator) "
            "predicts it for SGD; random directions (Forward(..., directions=)) and Evolution "
            "report their own."
        )
    scale_work(estimator, 2)


Piece = Callable[[Estimator, Any, Array], tuple[Any, Any, dict[str, Array]]]


def climb(piece: Piece, estimator: Estimator, state: Any, count: int) -> tuple[Any, Any, PyTree]:
    """``count`` outer steps by compiled pieces, of which each ends early where its work grows."""
    rows, left = [], count
    while True:
        begun = int(state.step)
        here = scale_work(estimator, 2 ** int(state.work.level))
        state, stop, history = piece(here, state, jnp.asarray(left))
        done = int(state.step) - begun
        rows.append(jax.tree.map(lambda column, n=done: column[:n], jax.device_get(history)))
        left -= done
        if left == 0 or stop.diverged or not done:  # nothing done: early stopping
            return state, stop, joined(rows)
