r"""The hypergradient of online reweighting: one step ahead, on the batch that comes next.

    move:        w <- step(w, h; B)                  B, the batch that h was asked about last time
    look ahead:  grad = d outer(step(w, h'; B')) / d h'    at h' = h, or h' = 0; B' the next batch

Ren, Zeng, Yang, Urtasun, "Learning to reweight examples for robust deep learning", ICML 2018
(h' = 0: examples are asked for as if none had been chosen yet); Shu et al., "Meta-Weight-Net",
NeurIPS 2019 (h' = h).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

import bilevel as bl
from bilevel.extend import (
    InnerState,
    MeasuresProblem,
    PyTree,
    Solver,
    init_inner_state,
    inner_loss,
    register_node,
    zeros_like,
)


@dataclass(frozen=True)
class LookAhead:
    """One step of the solver per call, with hyperparameters that were chosen for its very batch.

    :class:`bilevel.tune` updates, moves, and then estimates; the methods above estimate on a batch,
    update, and move on that batch. So the move is put off to the next call, and the batch is found
    again by its key. It is ``Reverse(steps=1)`` otherwise, without the inner residual: a gradient
    over all examples would cost as much as an epoch of steps, and at fixed weights of one batch it
    says nothing.

    Parameters
    ----------
    solver : the inner solver; with ``sampling="epoch"`` no example is twice in a batch.
    from_zero : differentiate at hyperparameters that are 0 instead of at the current ones.
    """

    solver: Solver
    from_zero: bool = False

    def init(self, params: PyTree, data: bl.Data) -> InnerState:
        """Return the start point; no batch has been looked at yet."""
        return init_inner_state(
            params, self.solver.init(params, data.inner), (None, jnp.array(False))
        )

    def step(
        self, problem: bl.Problem, hyper: PyTree, lower: InnerState, data: bl.Data, key: Array
    ) -> tuple[bl.Estimate, InnerState]:
        """Move on the batch of the last call, look ahead on the next."""
        loss = inner_loss(problem)
        last, known = lower.memory
        coming = jax.random.key_data(key)

        def move(hyper: PyTree, key_data: Array, params: PyTree, state: PyTree) -> Any:
            key_of_batch = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(key))
            return self.solver.step(loss, params, hyper, data.inner, key_of_batch, state)

        begun = lower.params, lower.solver_state
        if isinstance(self.solver, MeasuresProblem):
            state = self.solver.measure(loss, lower.params, hyper, data.inner, lower.solver_state)
            begun = lower.params, state
        previous = coming if last is None else last
        params, state = jax.lax.cond(known, lambda: move(hyper, previous, *begun), lambda: begun)

        def ahead(hyper: PyTree) -> Array:
            return problem.outer(move(hyper, coming, params, state)[0], hyper, data.outer)

        grad = jax.grad(ahead)(zeros_like(hyper) if self.from_zero else hyper)
        value = problem.outer(params, hyper, data.outer)
        evidence = bl.Evidence(counts=bl.Counts.of(gradients=2, vjps=1))
        after = InnerState(params, state, (coming, jnp.array(True)), lower.reference)
        return bl.Estimate(value, grad, evidence), after


register_node(LookAhead, data_fields=["solver"], meta_fields=["from_zero"])


def positive_part(total: float = 1.0) -> optax.GradientTransformation:
    """``hyper <- total max(-grad, 0) / sum max(-grad, 0)``: the weights of Ren et al.

    Examples that would not lower the outer loss get 0; all get 0 where none would.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wanted = jax.tree.map(lambda g: jnp.maximum(-g, 0), updates)
        size = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(wanted))
        scale = jnp.where(size > 0, total / jnp.where(size > 0, size, 1), 0)
        return jax.tree.map(lambda w, old: scale * w - old, wanted, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
