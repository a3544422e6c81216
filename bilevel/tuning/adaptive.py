r"""Doubles inner work when the signal-to-error ratio of the hypergradient falls below a target.

Far from the optimum a rough hypergradient will do; near it the same noise is all that is left. With
means over the recent outer steps, since one estimate's ratio is noise itself,

    snr^2 = mean |grad|^2 / mean |error|^2 - 1      (E |grad|^2 = |E grad|^2 + noise)
    |error|^2 = |standard_error|^2 + |bias|^2 + (residual_error |grad|)^2,   what is known of each

and work is doubled when ``snr < target``. Work is the number of inner steps with the window that is
averaged over, or the number of random directions: the noise falls like 1 / sqrt(work), and nothing
that a run carries changes its shape. Counts of steps are static, so each level is a program of its
own, compiled when it is reached: O(log work) of them.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Estimate, Estimator
from bilevel.estimators import scale_work
from bilevel.tuning.state import Columns, State, Step
from bilevel.utils import PyTree, dtype, register_node, require_positive, vdot


@dataclass(frozen=True)
class Adaptive:
    """When :func:`bilevel.tune` doubles the inner work: ``tune(..., hooks=[Adaptive(...)])``.

    The estimator must report a standard error, a bias or what its residuals stand for
    (``evidence.residual_error``): a poor step is followed by one of twice the inner steps, and so
    on until the hypergradient is good enough. The history then has ``work``, the multiple of the
    estimator's own, and ``signal_to_noise``. Each doubling compiles once (not under ``jit`` or
    ``vmap``).

    Parameters
    ----------
    target : ratio ``|E grad| / |error|`` below which work is doubled; 2 is a relative error of .5.
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

    target: float | Array = 2.0
    memory: int | Array = 4
    most: int | Array = 64

    def __post_init__(self) -> None:
        """Validate that numbers are in range."""
        for name in ("target", "memory", "most"):
            require_positive("Adaptive", name, getattr(self, name))
        if isinstance(self.most, int | float) and self.most < 2:
            raise ValueError(f"Adaptive: most must be at least 2 for any growth, got {self.most}.")

    def init(self, hyper: PyTree, params: PyTree) -> "WorkLevel":
        """Return the level of the estimator as it is."""
        del params
        return WorkLevel.initial(hyper)

    def update(self, memory: "WorkLevel", step: Step) -> "WorkLevel":
        """Return the level of the next outer step, after this estimate."""
        now = memory.including(step.kept, self.memory)
        enough = (now.ratio >= self.target) | (now.count < self.memory)
        stay = enough | (2 * memory.multiple > self.most)
        more = replace(WorkLevel.initial(memory.power), level=memory.level + 1)
        new = jax.tree.map(lambda a, b: jnp.where(stay, a, b), now, more)
        seen = now if step.made is step.state.estimate else memory.including(step.free, self.memory)
        return replace(new, shown=jnp.stack([memory.multiple.astype(seen.ratio.dtype), seen.ratio]))

    def columns(self, memory: "WorkLevel", step: Step) -> Columns:
        """Return the multiple of the work that the estimate was made with, and the ratio."""
        del step
        return {"work": memory.shown[0].astype(jnp.int32), "signal_to_noise": memory.shown[1]}

    def done(self, memory: "WorkLevel", begun: "WorkLevel") -> Array:
        """Return whether the next step needs another program."""
        return memory.level != begun.level


@dataclass(frozen=True)
class WorkLevel:
    """How much inner work a run does, and what it has seen since that is so, all ``()``.

    Parameters
    ----------
    level : work is ``2 ** level`` times the estimator's own.
    count : estimates since the last doubling.
    power, noise : recent means of ``|grad|^2`` and ``|error|^2``.
    shown : ``[2]``, multiple and ratio of the last step.
    """

    level: Array
    count: Array
    power: Array
    noise: Array
    shown: Array

    @classmethod
    def initial(cls, like: PyTree) -> "WorkLevel":
        """Return that of the estimator as it is."""
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), dtype(like))
        return cls(none, none, zero, zero, jnp.zeros(2, dtype(like)))

    @property
    def multiple(self) -> Array:
        """The multiple of the estimator's own work."""
        return 2**self.level

    @property
    def ratio(self) -> Array:
        """The signal-to-noise ratio; infinite without noise."""
        quiet = self.noise == 0
        squared = jnp.where(quiet, jnp.inf, self.power / jnp.where(quiet, 1, self.noise) - 1)
        return jnp.sqrt(jnp.maximum(squared, 0))

    def including(self, estimate: Estimate, memory: int | Array) -> "WorkLevel":
        """Return the same level with one more estimate in its means over so many."""
        share = 1 / jnp.minimum(self.count + 1, memory)

        def mean(old: Array, new: Array) -> Array:
            return (old + share * (new - old)).astype(old.dtype)

        power = mean(self.power, vdot(estimate.grad, estimate.grad))
        noise = mean(self.noise, _squared_error(estimate))
        return WorkLevel(self.level, self.count + 1, power, noise, self.shown)


for _node in (Adaptive, WorkLevel):
    register_node(_node)


def _squared_error(estimate: Estimate) -> Array:
    """Return what is known of ``|grad - exact|^2``, for infinite a million times ``|grad|^2``."""
    evidence, power = estimate.evidence, vdot(estimate.grad, estimate.grad)
    known = [x for x in (evidence.known_noise, evidence.bias) if x is not None]
    total = jnp.sum(jnp.stack([vdot(x, x) for x in known])) if known else jnp.zeros_like(power)
    if evidence.residual_error is not None:
        total += evidence.residual_error**2 * power
    return jnp.where(jnp.isfinite(total), total, 1e6 * power)


def level_of(state: State) -> int:
    """Return the level of work that a state has reached: 0 unless a run was adaptive."""
    work = state.memory.get(Adaptive.__name__)
    return 0 if work is None else int(work.level)


def require_adaptive(estimator: Estimator, estimate: Estimate, traced: bool) -> None:
    """Raise unless inner work may grow, and the estimator knows its error and can reduce it."""
    if traced:
        raise ValueError(
            "tune: Adaptive chooses between compiled programs by what it sees, so it cannot "
            "run under jit or vmap. Call it outside, or fix the work."
        )
    evidence = estimate.evidence
    if (
        evidence.standard_error is None
        and evidence.bias is None
        and evidence.residual_error is None
    ):
        raise ValueError(
            f"Adaptive compares the hypergradient with its error, and {estimator!r} reports none. "
            "Wrap it: Replicated(estimator, n) measures the noise, Predicted(estimator) predicts "
            "it for SGD; Evolution reports its own, and so do random directions (Forward(..., "
            "directions=m), m > 1) of several hyperparameters. Evidence that is off, or that would "
            "cost too much, reports no error either."
        )
    scale_work(estimator, 2)
