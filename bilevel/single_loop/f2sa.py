"""F2SA: a value-function penalty followed by minibatch gradients, first derivatives only."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.estimate import Counts, Estimate, Evidence, Lower, begin
from bilevel.estimators.base import full_gradient, inner_residual
from bilevel.lazily import only_if
from bilevel.nodes import register_node
from bilevel.problem import Data, Problem
from bilevel.schedules import Decay, evaluate
from bilevel.single_loop.batches import Batches
from bilevel.single_loop.first_order import begun, normalise
from bilevel.trees import PyTree, axpy, zeros_like


@dataclass(frozen=True)
class F2SA:
    r"""Value-function penalty with minibatch gradients and a multiplier that grows.

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

    step_size: Any
    batch_size: int | None = 64
    inner_steps: int = 10
    free_step: Any = None
    gamma: Any = 1.0
    growth: Any = Decay(0.1, 1 / 7)
    sampling: str = "iid"
    check_every: int = 128

    def __post_init__(self) -> None:
        """Normalise steps and refuse settings out of range."""
        if self.free_step is None:
            object.__setattr__(self, "free_step", self.step_size)
        normalise(self, ("step_size", "free_step", "growth"), ("inner_steps", "check_every"))
        self._batches()

    def _batches(self) -> Batches:
        return Batches(self.batch_size, self.sampling, False)

    def init(self, params: PyTree, data: Data) -> Lower:
        """The start point of w; y begins there with the first call."""
        batches = self._batches()
        batches.check("inner", data.inner)
        batches.check("outer", data.outer)
        return begin(params, (batches.init(data.inner), batches.init(data.outer)))

    def step(
        self, problem: Problem, hyper: PyTree, lower: Lower, data: Data, key: Array
    ) -> tuple[Estimate, Lower]:
        """Move w and y, then estimate the direction of the hyperparameters on fresh batches."""
        count = begun("F2SA", problem, hyper, lower, data)
        memory = lower.memory
        if memory is None:
            zero = jnp.zeros((), lower.reference.dtype)
            memory = {"y": zeros_like(lower.params), "added": zero, "residual": zero}
        y = jax.tree.map(partial(jnp.where, count == 0), lower.params, memory["y"])
        gamma, batches = self.gamma + memory["added"], self._batches()
        alpha, beta = (evaluate(s, count, hyper) for s in (self.step_size, self.free_step))
        steps_key, outer_key, one, two = jax.random.split(key, 4)

        def drawn(tree: PyTree, key: Array, state: Any) -> tuple[PyTree, Any]:
            draw, state = batches.draw(tree, key, state)
            return draw.batch, state

        def move(carry: Any, k: Array) -> tuple[Any, None]:
            w, y, inner, outer = carry
            keys = jax.random.split(jax.random.fold_in(steps_key, k), 3)
            for_w, inner = drawn(data.inner, keys[0], inner)
            for_y, inner = drawn(data.inner, keys[1], inner)
            for_f, outer = drawn(data.outer, keys[2], outer)
            d_w = axpy(
                gamma, jax.grad(problem.inner)(w, hyper, for_w),
                jax.grad(problem.outer)(w, hyper, for_f),
            )  # fmt: skip
            d_y = jax.grad(problem.inner)(y, hyper, for_y)
            return (axpy(-alpha, d_w, w), axpy(-beta, d_y, y), inner, outer), None

        carry = (lower.params, y, *lower.solver_state)
        (w, y, inner, outer), _ = jax.lax.scan(move, carry, jnp.arange(self.inner_steps))
        batch, outer = drawn(data.outer, outer_key, outer)
        value, direct = jax.value_and_grad(problem.outer, 1)(w, hyper, batch)
        batch, inner = drawn(data.inner, one, inner)
        at_w = jax.grad(problem.inner, 1)(w, hyper, batch)
        batch, inner = drawn(data.inner, two, inner)
        at_y = jax.grad(problem.inner, 1)(y, hyper, batch)
        grad = axpy(gamma, jax.tree.map(jnp.subtract, at_w, at_y), direct)

        def measure() -> tuple[Array, Array]:
            gradient = full_gradient(problem, hyper, w, data)
            return inner_residual(problem, hyper, lower.params, gradient, data, lower.reference)

        due = count % self.check_every == 0
        residual, reference = only_if(due, measure, (memory["residual"], lower.reference))
        added = memory["added"] + evaluate(self.growth, count, hyper)
        counts = Counts.of(gradients=2 * self.inner_steps + 2 + due * batches.count(data.inner))
        memory = {
            "count": count + 1, "y": y, "residual": residual,
            "added": added.astype(residual.dtype),
        }  # fmt: skip
        estimate = Estimate(value, grad, Evidence(residual, counts=counts))
        return estimate, Lower(w, (inner, outer), memory, reference)


register_node(
    F2SA,
    data_fields=["step_size", "free_step", "gamma", "growth"],
    meta_fields=["batch_size", "inner_steps", "sampling", "check_every"],
)
