"""F2SA: a value-function penalty followed by minibatch gradients, first derivatives only."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Decay,
    Estimate,
    InnerState,
    Problem,
    evaluate,
    init_inner_state,
)
from bilevel.estimators import full_gradient
from bilevel.single_loop.batches import BatchSize, Minibatches
from bilevel.single_loop.first_order import check_call, normalise_fields
from bilevel.single_loop.monitor import Monitor
from bilevel.single_loop.monitored import Monitored, direction_sizes, init_watched
from bilevel.single_loop.rates import StepSize
from bilevel.utils import PyTree, axpy, register_node, zeros_like

VARIABLES = ("w (params)", "y (free params)")


@dataclass(frozen=True)
class F2SA(Monitored):
    r"""A value-function penalty with minibatch gradients and a multiplier that grows.

        w <- w - step_size (gamma grad_w g(w) + grad_w f(w)),   y <- y - free_step grad_w g(y)
        grad = grad_lambda f(w) + gamma (grad_lambda g(w) - grad_lambda g(y)),   gamma += growth

    Kwon, Kwon, Wright, Nowak, ICML 2023. ``params`` are the penalised w; the residual, of the same
    params, therefore falls only as gamma grows.

    Parameters
    ----------
    step_size, free_step : of w and y, ``inner_steps`` times per call.
    gamma, growth : the multiplier at the start, and what is added after every call.
    batch_size, sampling, check_every : as for :class:`bilevel.SingleLoop`.

    Notes
    -----
    Keys: ``steps, outer, one, two = split(key, 4)``; inner step k splits ``fold_in(steps, k)`` into
    three, for g at w, g at y and f.
    """

    step_size: StepSize
    batch_size: BatchSize = 64
    inner_steps: int = 10
    free_step: StepSize | None = None
    gamma: float | Array = 1.0
    growth: StepSize = Decay(0.1, 1 / 7)
    sampling: str = "iid"
    check_every: int | None = None

    def __post_init__(self) -> None:
        """Normalise and validate the settings."""
        if self.free_step is None:
            object.__setattr__(self, "free_step", self.step_size)
        counts = ("inner_steps", "check_every")
        normalise_fields(self, ("step_size", "free_step", "growth"), counts)
        self._minibatches()

    def _steps(self) -> tuple[StepSize, StepSize]:
        """Return those of w and y."""
        free_step = self.step_size if self.free_step is None else self.free_step
        return self.step_size, free_step

    @property
    def monitor(self) -> Monitor:
        """The penalised and the free params, measured every ``check_every`` calls."""
        return Monitor(
            residuals=measure_free,
            passes=lambda data: self._minibatches().per_pass(data)[:1],
            cost=Counts.of(gradients=2),
            every=self.check_every,
            second="y",
            variables=VARIABLES,
            linear=False,
        )

    def _minibatches(self) -> Minibatches:
        """Return the minibatches of both levels."""
        return Minibatches.from_size(self.batch_size, self.sampling)

    def init(self, params: PyTree, data: Data) -> InnerState:
        """Return the start point of w; y begins there with the first call."""
        return init_inner_state(params, self._minibatches().init(data))

    def update(
        self, problem: Problem, hyper: PyTree, lower: InnerState, data: Data, key: Array
    ) -> tuple[Estimate, InnerState]:
        """Move w and y, then estimate the direction of the hyperparameters on fresh batches."""
        count = check_call("F2SA", problem, hyper, lower, data)
        memory = lower.memory
        if memory is None:
            watched = init_watched(lower.params)
            memory = {"y": zeros_like(lower.params), "added": 0 * lower.reference, **watched}
        y = jax.tree.map(partial(jnp.where, count == 0), lower.params, memory["y"])
        gamma, batches = self.gamma + memory["added"], self._minibatches()
        alpha, beta = (evaluate(s, count, hyper) for s in self._steps())
        keys, steps = jax.random.split(key, 4), self.inner_steps

        # All minibatches of the call are drawn at once; each has the key of its step.
        def of_step(k: Array, part: int | Array) -> Array:
            return jax.random.split(jax.random.fold_in(keys[0], k), 3)[part]

        def inner_key(i: Array) -> Array:
            return jnp.where(i < 2 * steps, of_step(i // 2, i % 2), keys[i + 2 - 2 * steps])

        def outer_key(k: Array) -> Array:
            return jnp.where(k < steps, of_step(k, 2), keys[1])

        inner, outer = lower.solver_state
        for_g, inner = batches.inner.ahead(data.inner, inner_key, inner, 2 * steps + 2)
        for_f, outer = batches.outer.ahead(data.outer, outer_key, outer, steps + 1)

        def advance(carry: tuple, k: Array) -> tuple[tuple, None]:
            w, y, _ = carry
            d_w = axpy(
                gamma,
                jax.grad(problem.inner)(w, hyper, for_g(2 * k).batch),
                jax.grad(problem.outer)(w, hyper, for_f(k).batch),
            )
            d_y = jax.grad(problem.inner)(y, hyper, for_g(2 * k + 1).batch)
            return (axpy(-alpha, d_w, w), axpy(-beta, d_y, y), (d_w, d_y)), None

        carry = (lower.params, y, zeros_like((y, y)))
        (w, y, directions), _ = jax.lax.scan(advance, carry, jnp.arange(steps))
        # The direction of the hyperparameters, on minibatches that the steps have not seen.
        last = jnp.asarray(steps)
        value, direct = jax.value_and_grad(problem.outer, 1)(w, hyper, for_f(last).batch)
        at_w = jax.grad(problem.inner, 1)(w, hyper, for_g(2 * last).batch)
        at_y = jax.grad(problem.inner, 1)(y, hyper, for_g(2 * last + 1).batch)
        grad = axpy(gamma, jax.tree.map(jnp.subtract, at_w, at_y), direct)

        added = memory["added"] + evaluate(self.growth, count, hyper)
        memory = {
            "count": count + 1,
            "y": y,
            "added": added.astype(memory["added"].dtype),
            "sizes": direction_sizes(*directions),
            "watch": memory["watch"],
        }
        evidence = self.monitor.evidence(memory["watch"], Counts.of(gradients=2 * steps + 2))
        return Estimate(value, grad, evidence), InnerState(
            w, (inner, outer), memory, lower.reference
        )

    def stability_limits(self, hyper: PyTree, lower: InnerState) -> dict[str, Array]:
        """Return ``2 / (gamma step_size)`` for w, whose steps are on ``gamma g + f``; that of y."""
        memory = lower.memory
        w, y = (evaluate(s, memory["count"], hyper) for s in self._steps())
        gamma = self.gamma + memory["added"]
        return dict(zip(VARIABLES, (2 / (gamma * w), 2 / y), strict=True))


def measure_free(
    problem: Problem, hyper: PyTree, after: InnerState, data: Data
) -> tuple[PyTree, PyTree, PyTree]:
    """Return the inner gradients at w, at y, and again at w, to which that at y is compared."""
    at_w, at_y = (full_gradient(problem, hyper, x, data) for x in (after.params, after.memory["y"]))
    return at_w, at_y, at_w


register_node(
    F2SA,
    data_fields=["step_size", "free_step", "gamma", "growth"],
    meta_fields=["batch_size", "inner_steps", "sampling", "check_every"],
)
