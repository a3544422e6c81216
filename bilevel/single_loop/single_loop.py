r"""Single-loop methods: params, adjoint and hyperparameters move at once, along estimates.

    w <- w - step_size D_w,   v <- v - adjoint_step D_v,   lambda <- by the outer transformation

The directions are those of ``oracles.py``, estimated by the rules of ``rules.py``. Dagreou, Ablin,
Vaiter, Moreau, NeurIPS 2022 (the framework); "plug and play" choices of rules: PnPBO, 2025.

Keys: move k of a call draws with ``fold_in(key, 4 k + j)``, j = 0 the inner minibatch, 1 the outer
one, 2 the coin, 3 the series: all its minibatches at once, and the length of HIA with ``fold_in(.,
1)`` of that key. Random losses see ``loss_key`` of the first.
"""

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Counts, Data, Estimate, InnerState, Problem, init_inner_state, rebind_key
from bilevel.estimators import check_minimiser
from bilevel.single_loop.batches import BatchSize, Minibatches
from bilevel.single_loop.drawing import (
    KeyOf,
    apply_rules,
    as_rule_takes,
    draw_both,
    make_key,
    refresh_points,
)
from bilevel.single_loop.monitor import Monitor
from bilevel.single_loop.monitored import Monitored, direction_sizes, init_watched
from bilevel.single_loop.oracles import DirectionParts, Series, Variables
from bilevel.single_loop.rates import Rate, Rates, move_along, stability_limits
from bilevel.single_loop.rules import SGD, DirectionRule, Sample
from bilevel.single_loop.stochastic import monitor_adjoint, named_steps, normalise_settings
from bilevel.single_loop.variance import SAGA, SVRG
from bilevel.utils import (
    PyTree,
    cond_without_select,
    dtype,
    nbytes,
    register_node,
    require_plain,
    zeros_like,
)

UpdateCarry: TypeAlias = tuple[
    PyTree, tuple, dict[str, PyTree], tuple
]  # params, samplers, memory, out


@dataclass(frozen=True)
class SingleLoop(Monitored):
    r"""One step on params and adjoint per hypergradient; nothing is solved to the end.

    ``grad`` is the direction of the hyperparameters at the point before the move, so that with
    ``optax.sgd`` all three variables move from the same point. ``value`` is the outer loss of that
    point on the outer minibatch. ``inner_residual`` and ``linear_residual`` are measured on all
    data every ``check_every`` calls, and whenever a direction has grown tenfold; in between they
    stand as last measured. Counts are in minibatches: a full direction counts as one pass.
    :func:`bilevel.tune` stops when a variable diverges, and names it.

    Parameters
    ----------
    step_size : of the params: a number, ``fn(count)``, ``fn(count, hyper)``, :class:`bilevel.Decay`
        or an optax transformation.
    batch_size : examples per minibatch, ``None`` for all, or a pair ``(inner, outer)``.
    w, v, lam : how the three directions are estimated: ``single_loop.SGD()``, ``Momentum``,
        ``STORM``, ``SAGA``, ``SVRG``, ``SARAH``, ``PAGE``. ``v`` may instead be a series,
        ``single_loop.HIA`` or ``SHIA``, formed afresh at every point.
    adjoint_step : of the adjoint, as ``step_size``; ``None``: the same.
    sampling : ``"iid"``, ``"without_replacement"`` or ``"epoch"``. With SAGA the minibatches are
        fixed blocks of the data in its order, the last one smaller if need be: shuffle beforehand.
    steps : moves of params and adjoint per call, at fixed hyperparameters.
    check_every : calls between two measurements on all data; ``None``: such that they cost at most
        a twentieth of the oracle calls, 128 at least.

    Raises
    ------
    ValueError : settings out of range, a ``Problem`` with ``prox`` or ``start``, a hyperparameter
        that the inner minimiser does not depend on.

    Examples
    --------
    >>> import bilevel as bl
    >>> from bilevel.single_loop import SAGA, STORM
    >>> saba = bl.SingleLoop(step_size=0.1, batch_size=64, w=SAGA(), v=SAGA(), lam=SAGA())
    >>> mixed = bl.SingleLoop(bl.Decay(0.1, 0.5), 64, v=SAGA(), lam=STORM(0.2))
    """

    step_size: Rate
    batch_size: BatchSize = 64
    w: DirectionRule = SGD()
    v: DirectionRule | Series = SGD()
    lam: DirectionRule = SGD()
    adjoint_step: Rate | None = None
    sampling: str = "iid"
    steps: int = 1
    check_every: int | None = None

    def __post_init__(self) -> None:
        """Normalise and validate the settings."""
        normalise_settings(self, ("steps", "check_every"))
        self._minibatches()
        for variable in ("w", "v", "lam"):
            rule = getattr(self, variable)
            if not hasattr(rule, "direction") and not (
                variable == "v" and isinstance(rule, Series)
            ):
                raise TypeError(
                    f"SingleLoop: {variable} must be a rule such as single_loop.SGD(), "
                    f"got {rule!r}."
                )
        periods = {rule.period for rule in self._rules().values() if isinstance(rule, SVRG)}
        if len(periods) > 1:
            raise ValueError(
                f"SingleLoop: one snapshot serves all SVRG rules, got periods {periods}."
            )

    @property
    def monitor(self) -> Monitor:
        """Params and adjoint, measured every ``check_every`` calls."""
        return monitor_adjoint(self._minibatches(), self.check_every, self.steps)

    @property
    def minibatches(self) -> int:
        """The inner minibatches of a call."""
        return self.steps * (1 + (self.v.steps if isinstance(self.v, Series) else 0))

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

    def _rules(self) -> dict[str, DirectionRule]:
        """Return the rule of each direction; a series' one is the plain minibatch."""
        rules = {"w": self.w, "v": self.v, "lam": self.lam}
        return {name: SGD() if isinstance(rule, Series) else rule for name, rule in rules.items()}

    def _minibatches(self) -> Minibatches:
        """Return the minibatches: fixed blocks where a rule keeps a table of them."""
        blocks = any(isinstance(rule, SAGA) for rule in self._rules().values())
        return Minibatches.from_size(self.batch_size, self.sampling, blocks)

    def _init_memory(self, hyper: PyTree, params: PyTree, data: Data) -> dict[str, PyTree]:
        """Return adjoint, stored points and memories of the rules, all zeros."""
        counts = self._minibatches().per_pass(data)
        zero, flat = zeros_like(params), zeros_like(hyper)
        parts = DirectionParts((zero,), (zero, zero), (flat, flat))._asdict()
        rules = self._rules()
        looked = {rule.looks_back for rule in rules.values() if rule.looks_back is not None}
        return {
            "v": zero,
            "points": {name: Variables(zero, zero, flat) for name in sorted(looked)},
            "rules": {
                n: rules[n].init(as_rule_takes(rules[n], p), counts) for n, p in parts.items()
            },
            **init_watched(params),
        }

    def memory_bytes(self, hyper: PyTree, params: PyTree, data: Data) -> int:
        """Return the bytes carried beside the params, tables included; nothing is run."""
        hyper, params = jax.tree.map(jnp.asarray, (hyper, params))
        return nbytes(jax.eval_shape(lambda: self._init_memory(hyper, params, data)))

    def update(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Move params and adjoint, return the direction of the hyperparameters."""
        require_plain("SingleLoop", problem)
        check_minimiser("SingleLoop", problem, hyper, lower.params, data)
        memory = lower.memory
        if memory is None:
            memory = self._init_memory(hyper, lower.params, data)

        def advance(carry: UpdateCarry, k: int | Array) -> tuple[UpdateCarry, None]:
            return self._move(problem, hyper, carry, data, partial(make_key, key, k)), None

        blank = jnp.zeros((), jnp.int32)
        outputs = (Variables(lower.params, memory["v"], hyper), jnp.zeros((), dtype(hyper)), blank)
        carry = (lower.params, lower.solver_state, memory, outputs)
        if self.steps == 1:
            carry, _ = advance(carry, 0)
        else:
            carry, _ = jax.lax.scan(advance, carry, jnp.arange(self.steps))
        params, state, memory, (directions, value, made) = carry
        memory = {**memory, "sizes": direction_sizes(directions.w, directions.v)}
        evidence = self.monitor.evidence(memory["watch"], Counts.of(gradients=made, hvps=made))
        after = InnerState(params, state, memory, lower.reference)
        return Estimate(value, directions.lam, evidence), after

    def _move(
        self, problem: Problem, hyper: PyTree, carry: UpdateCarry, data: Data, key: KeyOf
    ) -> UpdateCarry:
        """Move params and adjoint once from ``carry``, and the directions that it took."""
        params, (*samplers, rates), memory, (_, _, calls) = carry
        count, rules, sizes = memory["count"], self._rules(), self._minibatches().per_pass(data)
        here = Variables(params, memory["v"], hyper)
        series = self.v if isinstance(self.v, Series) else None
        problem = rebind_key(problem, key(0))
        drawn, samplers, coin, at = draw_both(
            problem, data, self._minibatches(), series, samplers, key
        )

        # Where a rule is due, all data at the current point; elsewhere points seen before.
        due = {n: rule.due(count, coin, max(sum(sizes) // 2, 1)) for n, rule in rules.items()}

        points = refresh_points(memory["points"], here, rules, due, count)
        past = at({"now": here, **points})
        now, full = past.pop("now"), None
        if not all(flag is False for flag in due.values()):
            wanted = jnp.any(jnp.stack([jnp.asarray(flag) for flag in due.values()]))
            full = cond_without_select(
                wanted, lambda: at({"now": here}, whole=True)["now"], zeros_like(now)
            )
            calls = calls + sizes[0] * (wanted + full.products)

        # Each rule combines what was evaluated into a direction, part by part.
        slots = tuple((d.block, n) for d, n in zip(drawn, sizes, strict=True))
        common = partial(Sample, slots=slots, step=count, hyper=hyper)
        directions, memories = apply_rules(rules, memory["rules"], now, past, full, due, common)
        if "previous" in points:
            points["previous"] = here

        w_rate, v_rate = self._rates().at(count, hyper)
        w_state, v_state = rates
        params, w_state = move_along(w_rate, params, directions["w"], count, hyper, w_state)
        v = now.v
        if series is None:
            v, v_state = move_along(v_rate, v, directions["v"], count, hyper, v_state)
        calls = calls + (1 + now.products) * (1 + len(past))
        memory = {**memory, "count": count + 1, "v": v, "points": points, "rules": memories}
        outputs = (Variables(**directions), now.value, calls)
        return params, (*samplers, (w_state, v_state)), memory, outputs


_leaves = ["step_size", "w", "v", "lam", "adjoint_step"]
register_node(SingleLoop, _leaves, ["batch_size", "sampling", "steps", "check_every"])
