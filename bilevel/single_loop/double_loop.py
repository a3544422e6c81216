r"""Methods with inner loops: params first, then the adjoint there, then the hyperparameters.

    w <- w - step_size grad_w g_b(w)                 inner_steps times
    v <- v - adjoint_step (H_b v + grad_w f_c)       adjoint_steps times, or a series, afresh
    grad = C_b^T v + grad_lambda f_c                 by a rule, at the new (w, v)

Keys: a call draws with ``inner, outer, adjoint, cross, again = split(key, 5)``; the k-th inner step
with ``fold_in(inner, k)``, the k-th adjoint step with ``fold_in(adjoint, k)``. A series draws all
its minibatches with ``adjoint`` at once (epochs go on as for steps), HIA its length with
``fold_in(adjoint, 1)``.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Data, Estimate, InnerState, Problem, init_inner_state
from bilevel.estimators import check_minimiser
from bilevel.single_loop.batches import BatchSize, Drawn, Minibatches
from bilevel.single_loop.inner_loops import InnerLoop, descend_adjoint, descend_params, sum_series
from bilevel.single_loop.monitor import Monitor
from bilevel.single_loop.monitored import Monitored, direction_sizes, init_watched
from bilevel.single_loop.oracles import (
    Series,
    Variables,
    cross_product,
    outer_directions,
    sum_parts,
)
from bilevel.single_loop.rates import Rate, Rates, stability_limits
from bilevel.single_loop.rules import SGD, STORM, Momentum, Sample
from bilevel.single_loop.stochastic import monitor_adjoint, named_steps, normalise_settings
from bilevel.utils import PyTree, register_node, require_plain, zeros_like


@dataclass(frozen=True)
class DoubleLoop(Monitored):
    r"""A few steps on the params, a few on the adjoint (or a series), one hypergradient.

    Evidence, counts, value and the naming of divergence are those of :class:`bilevel.SingleLoop`.

    Parameters
    ----------
    step_size, adjoint_step, batch_size, sampling, check_every : as for ``SingleLoop``.
    inner_steps : SGD steps on the params per call.
    v : ``single_loop.SGD()``, the adjoint going on from the last call, or a series formed afresh,
        ``single_loop.HIA`` or ``SHIA``.
    adjoint_steps : SGD steps on the adjoint per call; ``None``: as many as ``inner_steps``.
    lam : how the hypergradient is estimated: ``single_loop.SGD()``, ``Momentum`` or ``STORM``.
    fresh_outer : draw a second outer minibatch for the hypergradient's direct part, instead of the
        one on which the adjoint's right-hand side is formed.
    hyper_first : the first call leaves the params where they are and later ones use the step size
        of the call before: so methods that are published as "move the hyperparameters, then the
        params" are the same sequence of moves.

    Raises
    ------
    ValueError, TypeError : as for ``SingleLoop``; a rule for ``lam`` that needs full directions.

    Examples
    --------
    >>> import bilevel as bl
    >>> amigo = bl.DoubleLoop(step_size=0.1, batch_size=64, inner_steps=10)
    >>> stocbio = bl.DoubleLoop(0.1, 64, v=bl.single_loop.SHIA(steps=10, step_size=0.1))
    """

    step_size: Rate
    batch_size: BatchSize = 64
    inner_steps: int = 10
    v: SGD | Series = SGD()
    adjoint_steps: int | None = None
    lam: SGD | Momentum | STORM = SGD()
    adjoint_step: Rate | None = None
    sampling: str = "iid"
    fresh_outer: bool = False
    hyper_first: bool = False
    check_every: int | None = None

    def __post_init__(self) -> None:
        """Normalise and validate the settings."""
        normalise_settings(self, ("inner_steps", "adjoint_steps", "check_every"))
        self._minibatches()
        name = "DoubleLoop"
        if not isinstance(self.v, SGD | Series):
            raise TypeError(f"{name}: v must be single_loop.SGD(), HIA or SHIA, got {self.v!r}.")
        if not isinstance(self.lam, SGD | Momentum | STORM):
            raise TypeError(
                f"{name}: lam must be single_loop.SGD(), Momentum or STORM, got {self.lam!r}. "
                "SingleLoop takes the other rules."
            )

    @property
    def monitor(self) -> Monitor:
        """Params and adjoint, measured every ``check_every`` calls."""
        return monitor_adjoint(self._minibatches(), self.check_every)

    @property
    def minibatches(self) -> int:
        """The inner minibatches of a call."""
        more = self.v.steps if isinstance(self.v, Series) else self.adjoint_steps
        return self.inner_steps + (more or self.inner_steps) + 1

    def init(self, params: PyTree, data: Data) -> InnerState:
        """Return start point, samplers and states of the two steps; all else begins at zero."""
        samplers = self._minibatches().init(data)
        return init_inner_state(params, (*samplers, self._rates().init(params)))

    def stability_limits(self, hyper: PyTree, lower: InnerState) -> dict[str, Array]:
        """Return ``2 / step`` for params and adjoint; nothing for an optax transformation."""
        steps = named_steps(self._rates(), self.v)
        return stability_limits(steps, lower.memory["count"], hyper)

    def _rates(self) -> Rates:
        """Return the rates of params and adjoint."""
        return Rates.from_settings(self.step_size, self.adjoint_step)

    def _minibatches(self) -> Minibatches:
        """Return the minibatches of both levels."""
        return Minibatches.from_size(self.batch_size, self.sampling)

    def _init_memory(self, hyper: PyTree, params: PyTree) -> dict[str, PyTree]:
        """Return adjoint, previous point and the memory of the rule, all zeros."""
        zero, flat = zeros_like(params), zeros_like(hyper)
        return {
            "v": zero,
            "previous": Variables(zero, zero, flat) if self.lam.looks_back else None,
            "rule": self.lam.init((flat,), ()),
            **init_watched(params),
        }

    def update(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Move the params, then the adjoint, then estimate the hypergradient there."""
        require_plain("DoubleLoop", problem)
        check_minimiser("DoubleLoop", problem, hyper, lower.params, data)
        memory = lower.memory
        if memory is None:
            memory = self._init_memory(hyper, lower.params)
        # Params, then the adjoint at the new params, then the hypergradient at both.
        inner_state, outer_state, (w_state, v_state) = lower.solver_state
        inner, outer = self._minibatches()
        count = memory["count"]
        inner_key, outer_key, adjoint_key, cross_key, again_key = jax.random.split(key, 5)

        carry = (lower.params, w_state, inner_state)
        index = jnp.maximum(count - 1, 0) if self.hyper_first else count
        w_loop = InnerLoop(problem, inner, self._rates().w, data, self.inner_steps, inner_key)
        moved = descend_params(w_loop, hyper, carry, index)
        if self.hyper_first:
            stay = (*carry, zeros_like(lower.params))
            moved = jax.tree.map(partial(jnp.where, count == 0), stay, moved)
        w, w_state, inner_state, d_w = moved
        drawn, outer_state = outer.draw(data.outer, outer_key, outer_state)
        value, (rhs, direct) = outer.mean(
            partial(outer_directions, problem, w, hyper), data.outer, drawn
        )
        carry = (memory["v"], v_state, inner_state)
        steps = self.adjoint_steps or self.inner_steps
        v_loop = InnerLoop(problem, inner, self._rates().v, data, steps, adjoint_key)
        here = Variables(w, memory["v"], hyper)
        if isinstance(self.v, Series):
            v, v_state, inner_state, d_v, products = sum_series(self.v, v_loop, here, rhs, carry)
        else:
            v, v_state, inner_state, d_v = descend_adjoint(v_loop, here, rhs, carry, count)
            products = jnp.asarray(steps, jnp.int32)
        here = Variables(w, v, hyper)
        # At the new params and adjoint, on one more inner minibatch.
        samplers = (drawn, direct, inner_state, outer_state)
        grad, rule, inner_state, outer_state = self._hypergradient(
            problem, here, memory, samplers, data, cross_key, again_key
        )
        counts = Counts.of(
            gradients=self.inner_steps, hvps=products + (1 if memory["previous"] is None else 2)
        )
        memory = {
            "v": v,
            "previous": None if memory["previous"] is None else here,
            "rule": rule,
            "count": count + 1,
            "sizes": direction_sizes(d_w, d_v),
            "watch": memory["watch"],
        }
        state = (inner_state, outer_state, (w_state, v_state))
        evidence = self.monitor.evidence(memory["watch"], counts)
        return Estimate(value, grad, evidence), InnerState(w, state, memory, lower.reference)

    def _hypergradient(
        self,
        problem: Problem,
        here: Variables,
        memory: dict[str, PyTree],
        samplers: tuple[Drawn, PyTree, PyTree, PyTree],
        data: Data,
        cross_key: Array,
        again_key: Array,
    ) -> tuple[PyTree, PyTree, PyTree, PyTree]:
        """Return ``(direction, rule's memory, sampler states)`` at ``here``, by ``lam``."""
        inner, outer = self._minibatches()
        drawn, direct, inner_state, outer_state = samplers
        if self.fresh_outer:
            direct = None
            drawn, outer_state = outer.draw(data.outer, again_key, outer_state)
        cross, inner_state = inner.draw(data.inner, cross_key, inner_state)

        def hypergradient(point: Variables, direct: PyTree = None) -> tuple:
            if direct is None:
                at_point = partial(jax.grad(problem.outer, argnums=1), point.w, point.lam)
                direct = outer.mean(at_point, data.outer, drawn)
            indirect = inner.mean(partial(cross_product, problem, *point), data.inner, cross)
            return (sum_parts((indirect, direct)),)

        count, past = memory["count"], None
        now = hypergradient(here, direct)
        if memory["previous"] is not None:
            past = hypergradient(
                jax.tree.map(partial(jnp.where, count == 0), here, memory["previous"])
            )
        sample = Sample(now, past, None, None, False, (), count, here.lam)
        parts, rule = self.lam.direction(sample, memory["rule"])
        return sum_parts(parts), rule, inner_state, outer_state


register_node(
    DoubleLoop,
    data_fields=["step_size", "v", "lam", "adjoint_step"],
    meta_fields=[
        "batch_size",
        "inner_steps",
        "adjoint_steps",
        "sampling",
        "fresh_outer",
        "hyper_first",
        "check_every",
    ],
)
