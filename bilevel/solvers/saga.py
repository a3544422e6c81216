r"""SAGA: minibatch steps whose noise vanishes at the solution, with a table of gradients.

    w <- w - eta [mean_{i in b} (g_i(w) - t_i) + mean_i t_i],   t_i <- g_i(w) for i in b

Defazio, Bach, Lacoste-Julien, NeurIPS 2014 (also its prox). The table is part of the state, so that
an estimator carries its derivative ``T_i``, that of the i-th gradient when it was last seen:

    D <- D - eta [mean_{i in b} (H_i D + C_i - T_i) + mean_i T_i],   T_i <- H_i D + C_i for i in b

is the variance-reduced form of the derivative of SGD: its noise vanishes as well, and ``D`` tends
geometrically to the derivative of the minimiser, where that of SGD keeps a floor of O(eta).
"""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import Loss, Problem, count_examples
from bilevel.solvers.sampling import Sampler, SamplerState, take_rows
from bilevel.solvers.steps import (
    SolverStepSize,
    StepCount,
    advance_count,
    apply_prox,
    as_step_size,
    evaluate_step_size,
    init_count,
    measure_limit,
    restart_count,
)
from bilevel.utils import (
    Bool,
    DataTree,
    FloatTree,
    Hyper,
    Int,
    Key,
    Params,
    Scalar,
    axpy,
    register_node,
    zeros_like,
)

# StepCount, table [n, *leaf], its mean [*leaf], sampler.
SAGAState: TypeAlias = tuple[StepCount, FloatTree, Params, SamplerState]


@dataclass(frozen=True)
class SAGA:
    r"""SAGA with one gradient per example in a table; applies ``Problem.prox`` where there is one.

    The loss must be a mean over the batch, for each of its examples alone as well. A step costs
    ``batch_size`` gradients of single examples. Memory: the table, n trees like ``params``; under
    ``Forward`` so many more tangents, hence O(n p params); under ``Reverse`` one table per
    checkpoint. For large ``params`` take :class:`bilevel.SVRG`, which keeps two trees. The table
    begins at 0 and is carried from call to call: entries of an earlier ``hyper`` do not bias a
    step, and are replaced within a few passes.

    Parameters
    ----------
    step_size : a positive number, :class:`bilevel.Relative`, ``fn(count)`` or ``fn(count,
        hyper)``; 1 / (3 L), with L the largest curvature of the loss on one example.
    batch_size : examples per step, at most n; ``None`` is the full batch.
    sampling : ``"iid"`` (with replacement), ``"without_replacement"`` (different examples in every
        batch) or ``"epoch"`` (random permutations).

    Raises
    ------
    ValueError : a step size that is not positive, an unknown sampling.

    Examples
    --------
    >>> import bilevel as bl
    >>> bl.SAGA(step_size=0.1, batch_size=8).sampling
    'iid'
    """

    step_size: SolverStepSize
    batch_size: int | None = 1
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments."""
        object.__setattr__(self, "step_size", as_step_size("SAGA", self.step_size))
        Sampler(self.batch_size, self.sampling)

    def check(self, problem: Problem) -> None:
        """Accept every problem, with and without a proximal part."""

    def init(self, params: Params, data: DataTree) -> SAGAState:
        """Return ``(count, table [n, *leaf], its mean [*leaf], sampler state)``."""
        n = count_examples(data)
        table = jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape), leaf.dtype), params)
        sampler = Sampler(self.batch_size, self.sampling).init(data)
        return init_count(self.step_size, params), table, zeros_like(params), sampler

    def measure(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, state: SAGAState
    ) -> SAGAState:
        """Return the state with the limit of a relative step size, 1/3 of that of SGD."""
        count, table, mean, sampler = state
        count = measure_limit(
            count, loss, params, hyper, data, batch_size=self.batch_size, scale=1 / 3
        )
        return count, table, mean, sampler

    def drawn(self, data: DataTree, key: Key, state: SAGAState) -> DataTree:
        """Return the minibatch that ``step`` with this key and state sees."""
        return Sampler(self.batch_size, self.sampling).draw(data, key, state[3])[0]

    def refresh(self, state: SAGAState) -> SAGAState:
        """Return the state to begin a call with: a learned schedule begins anew."""
        return restart_count(state[0], self.step_size), *state[1:]

    def step(
        self, loss: Loss, params: Params, hyper: Hyper, data: DataTree, key: Key, state: SAGAState
    ) -> tuple[Params, SAGAState]:
        """Draw a batch, move along its corrected gradient, write its gradients into the table."""
        count, table, mean, sampler = state
        rows, sampler = Sampler(self.batch_size, self.sampling).indices(data, key, sampler)
        batch = jax.tree.map(lambda leaf: take_rows(leaf, rows)[:, None], data)
        new = jax.vmap(jax.grad(loss), in_axes=(None, None, 0))(params, hyper, batch)
        change = jax.tree.map(lambda g, t: g - take_rows(t, rows), new, table)

        def direct(change: Array, mean: Array) -> Array:
            return jnp.mean(change, axis=0) + mean

        size = evaluate_step_size(self.step_size, count, hyper)
        direction = jax.tree.map(direct, change, mean)
        params = apply_prox(loss, axpy(-size, direction, params), hyper, size)

        # Written as a sum, which differentiates without a copy of the table; hence once per row,
        # although a batch that is drawn with replacement may hold a row twice.
        once = mark_distinct(rows)
        change = jax.tree.map(lambda c: jnp.einsum("b,b...->b...", once.astype(c.dtype), c), change)
        table = jax.tree.map(lambda t, c: t.at[rows].add(c), table, change)
        n = count_examples(data)
        mean = jax.tree.map(lambda m, c: m + jnp.sum(c, axis=0) / n, mean, change)
        return params, (advance_count(count), table, mean, sampler)

    def max_curvature(self, hyper: Hyper, state: SAGAState) -> Scalar:
        """Return ``2 / step_size``."""
        return 2 / evaluate_step_size(self.step_size, state[0], hyper)


register_node(SAGA, data_fields=["step_size"], meta_fields=["batch_size", "sampling"])


def mark_distinct(rows: Int[Array, " b"]) -> Bool[Array, " b"]:
    """Return one ``True`` for each row number that occurs in ``rows``."""
    order = jnp.argsort(rows)
    ordered = rows[order]
    new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros_like(new).at[order].set(new)
