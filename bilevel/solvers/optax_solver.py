"""Any optax transformation as an inner solver."""

from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from bilevel.core import Loss, StaticTransform, Transform, as_pytree
from bilevel.solvers.repeat import StepKey
from bilevel.solvers.sampling import Sampler, SamplerState
from bilevel.solvers.smooth_update import update_smoothly
from bilevel.solvers.steps import plain_count, restart_count
from bilevel.utils import Counter, DataTree, Hyper, Params, PyTree, Scalar, register_node

_SEARCHES = (
    "its line search stops by comparing numbers, so the derivative of its steps need not be that "
    "of the minimiser"
)
OptaxState: TypeAlias = tuple[Counter, PyTree, SamplerState]  # count, optax state, sampler


@dataclass(frozen=True)
class Optax:
    """Minibatch steps of an optax transformation, also of one that asks for the loss itself.

    Parameters
    ----------
    tx : an optax transformation; :func:`bilevel.transform` keeps its numbers as leaves and lets
        ``fn(count, hyper)`` make them hyperparameters.
    batch_size : examples per step, at most n; ``None`` is the full batch.
    sampling : ``"iid"`` (with replacement), ``"without_replacement"`` (different examples in every
        batch) or ``"epoch"`` (random permutations).

    Notes
    -----
    ``optax.lbfgs`` takes the change of the gradient by a new ``hyper`` for curvature: prefer
    :class:`bilevel.LBFGS`. Line searches are for ``Implicit`` only.
    An update that divides by a root of squared gradients (``optax.adam``) has the derivative 0 for
    entries whose gradient has always been exactly 0, as those of a column of zeros.

    Raises
    ------
    TypeError : ``tx`` is not a transformation.

    Examples
    --------
    >>> import bilevel as bl, optax
    >>> solver = bl.Optax(optax.adam(1e-2), batch_size=32)
    """

    tx: PyTree
    batch_size: int | None = None
    sampling: str = "iid"

    def __post_init__(self) -> None:
        """Validate the arguments, and wrap what ``jit`` could not take as one."""
        object.__setattr__(self, "tx", as_pytree("Optax", self.tx))
        Sampler(self.batch_size, self.sampling)

    @property
    def sampler(self) -> Sampler:
        """How minibatches are drawn."""
        return Sampler(self.batch_size, self.sampling)

    def init(self, params: Params, data: DataTree) -> OptaxState:
        """Return ``(count, optax state, sampler state)``."""
        sampler = self.sampler.init(data)
        return jnp.zeros((), jnp.int32), self.tx.init(params), sampler

    def why_not_unrolled(self, state: OptaxState) -> str | None:
        """Return the reason if there is a line search among the transformations."""
        searches = optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState
        nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, searches))
        return _SEARCHES if any(isinstance(node, searches) for node in nodes) else None

    def drawn(self, data: DataTree, key: StepKey, state: OptaxState) -> DataTree:
        """Return the minibatch that ``step`` with this key and state sees."""
        return self.sampler.draw(data, key, state[2])[0]

    def refresh(self, state: OptaxState) -> OptaxState:
        """Return the state to begin a call with: a learned schedule begins anew."""
        settings = getattr(self.tx, "settings", {}).values()
        return plain_count(restart_count(state[0], *settings)), *state[1:]

    def approximate_inverse(self, state: OptaxState, v: Params) -> Params:
        """Return ``v`` over the root of the squared gradients, as ``optax.adam`` would divide it.

        Raises
        ------
        ValueError : a transformation that keeps none, or not one of every param.
        """
        kept = [x for _, x in optax.tree_utils.tree_get_all_with_path(state[1], "nu")]
        if len(kept) != 1 or jax.tree.structure(kept[0]) != jax.tree.structure(v):
            raise ValueError(
                "SolverInverse: this optax transformation keeps no squared gradients to divide by, "
                "or not one of every param. Take optax.adam or its kin, unmasked, or the "
                "preconditioner HessianDiagonal."
            )
        (squares,) = kept
        largest = jnp.max(jnp.stack([jnp.max(x) for x in jax.tree.leaves(squares)]))
        least = jnp.where(largest > 0, 1e-6 * largest, 1)  # a gradient that was always 0
        return jax.tree.map(lambda x, nu: x / jnp.sqrt(jnp.maximum(nu, least)), v, squares)

    def step(
        self,
        loss: Loss,
        params: Params,
        hyper: Hyper,
        data: DataTree,
        key: StepKey,
        state: OptaxState,
    ) -> tuple[Params, OptaxState]:
        """Draw a batch, apply the transformed gradient."""
        count, inner, sampler = state
        batch, sampler = self.sampler.draw(data, key, sampler)

        def objective(params: Params) -> Scalar:
            return loss(params, hyper, batch)

        value, gradient = jax.value_and_grad(objective)(params)
        tx = self.tx
        if isinstance(tx, Transform | StaticTransform):
            extra = {"value": value, "grad": gradient, "value_fn": objective}
            tx = tx.at(count, hyper) if isinstance(tx, Transform) else tx
            updates, inner = update_smoothly(tx, gradient, inner, params, extra)
        else:
            updates, inner = tx.update(gradient, inner, params)
        return optax.apply_updates(params, updates), (count + 1, inner, sampler)


register_node(Optax, data_fields=["tx"], meta_fields=["batch_size", "sampling"])
