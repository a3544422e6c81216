"""No step size and no choice: a quasi-Newton search while the values behave, then steps for noise.

It begins as :class:`LBFGS` (``trust.py``). Each trial is asked whether its value could be explained
by the slopes at both ends. A rejection that could not, or a standard error of half the
hypergradient, raises a suspicion; at three in a row the values do not decide any more, and the run
goes on from the best accepted point as :class:`DoG` (``dog.py``), in the metric that the search has
found.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.outer.base import flat_admit, flatten
from bilevel.outer.dog import Walk, absorb, stride
from bilevel.outer.dog import begin as begin_walk
from bilevel.outer.trust_region import (
    Admit,
    Trust,
    backtrack,
    best,
    judge,
    propose,
    scales,
    shorten,
)
from bilevel.outer.trust_region import begin as begin_search
from bilevel.utils import PyTree, norm, register_node
from bilevel.utils.validation import require_positive_int

_MEMORY, _ENOUGH = 0.7, 2.0  # suspicion fades, and suffices
_STUCK = 8  # rejections in a row that no smooth function causes
_LOUD = 0.5  # standard error over hypergradient


class State(NamedTuple):
    """The search, the walk that follows it once the values are ``noisy``, and the suspicion."""

    search: Trust
    walk: Walk
    noisy: Array
    suspicion: Array


@dataclass(frozen=True)
class Auto:
    """An outer rule without a step size, for hypergradients with noise and without.

    While value and hypergradient agree, it is :class:`LBFGS`: accepted values never rise, trials
    where the inner solver diverges are taken back and tried shorter. When they cease to, it walks
    on by :class:`DoG` from the best accepted point.

    A run ends with the best accepted point, as long as the values agree. After that,
    ``result.state.outer.noisy`` is true, and it ends with the walk's average, unless the values
    there were worse than at the best accepted point by more than twice their spread: then with that
    point. ``result.params`` and ``result.estimate`` are those of the last evaluation.

    Parameters
    ----------
    memory : number of curvature pairs; the state holds ``2 memory + 9`` vectors like ``hyper``.

    Raises
    ------
    ValueError : ``memory`` below 1.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> problem = bl.Problem(
    ...     inner=lambda w, h, x: jnp.mean((w - x) ** 2) / 2 + jnp.exp(h) * w**2 / 2,
    ...     outer=lambda w, h, x: jnp.mean((w - x) ** 2) / 2,
    ... )
    >>> data = bl.Data(inner=jnp.array([2.0]), outer=jnp.array([1.5]))
    >>> estimator = bl.Implicit(bl.GradientDescent(step_size=0.5), steps=50)
    >>> result = bl.tune(problem, estimator, bl.outer.Auto(), jnp.array(0.0), jnp.array(0.0), data,
    ...                  steps=10, key=jax.random.key(0))
    >>> jnp.exp(result.hyper).round(3)  # w* = 2 / (1 + e^h) = 1.5
    Array(0.333, dtype=float32)
    """

    memory: int = 10

    def __post_init__(self) -> None:
        """Refuse an empty memory."""
        require_positive_int("Auto", "memory", self.memory)

    def init(self, params: PyTree) -> State:
        """A search that knows nothing yet."""
        flat = ravel_pytree(params)[0]
        search, walk = begin_search(flat, self.memory), begin_walk(flat, 0.0)
        return State(search, walk, jnp.array(False), jnp.zeros((), flat.dtype))

    def update(
        self,
        updates: PyTree,
        state: State,
        params: PyTree = None,
        *,
        value: Any = None,
        standard_error: PyTree = None,
        admit: Any = None,
        **_: Any,
    ) -> tuple[PyTree, State]:
        """From the evaluation at ``params`` to the next trial or step."""
        at, slope, value, back = flatten("Auto", updates, params, value)
        loud = _loud(updates, standard_error)
        following, state = jax.lax.cond(
            state.noisy,
            lambda: _walk(state, at, value, slope),
            lambda: _search(state, at, value, slope, loud, flat_admit(admit, back)),
        )
        return back(following - at), state

    def best(self, state: State, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """What a run ends with, the last evaluation included, and its value."""
        flat, back = ravel_pytree(hyper)
        search, walk = state.search, absorb(state.walk, flat, value.astype(flat.dtype))
        fallen = walk.level <= search.value + 2 * walk.spread
        walked = (
            back(jnp.where(fallen, walk.average, search.base)),
            jnp.where(fallen, walk.level, search.value).astype(value.dtype),
        )
        searched = best(search, hyper, value)
        return jax.tree.map(lambda a, b: jnp.where(state.noisy, a, b), walked, searched)

    def backtrack(self, before: State, after: State, hyper: PyTree) -> tuple[State, Array]:
        """A quarter of the step that was refused."""
        origin = jnp.where(after.noisy, after.walk.at, after.search.base)
        length = jnp.linalg.norm(ravel_pytree(hyper)[0] - origin)
        search, hopeful = backtrack(before.search, length)
        return before._replace(search=search), hopeful


register_node(Auto, data_fields=[], meta_fields=["memory"])


def _search(
    state: State, at: Array, value: Array, slope: Array, loud: Array, admit: Admit | None
) -> tuple[Array, State]:
    """Judge the trial; propose another, or begin to walk from the best accepted point."""
    search, verdict = judge(state.search, at, value, slope)
    odd = (verdict.jumped & ~verdict.accepted) | loud
    suspicion = _MEMORY * state.suspicion + odd
    noisy = (suspicion >= _ENOUGH) | (search.rejections >= _STUCK)
    begun = State(search, begin_walk(search.base, search.stride), jnp.array(True), suspicion)
    walked = _walk(begun, search.base, search.value, search.slope)
    following, pending = propose(search, admit)
    searched = following, State(pending, state.walk, jnp.array(False), suspicion)
    return jax.tree.map(lambda a, b: jnp.where(noisy, a, b), walked, searched)


def _walk(state: State, at: Array, value: Array, slope: Array) -> tuple[Array, State]:
    """One step of the walk, no longer than what is allowed; back, and half as far, from nowhere."""
    search, walk = state.search, state.walk
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    at, value = jnp.where(finite, at, walk.at), jnp.where(finite, value, walk.level)
    slope = jnp.where(finite, slope, 0)
    walk = walk._replace(farthest=jnp.where(finite, walk.farthest, walk.farthest / 2))
    step, walk = stride(walk, at, value, slope, scales(search))
    shorter, search = shorten(search, step)
    return at + shorter, state._replace(search=search, walk=walk)


def _loud(grad: PyTree, standard_error: PyTree) -> Array:
    """Whether the hypergradient is known to be little more than noise."""
    if standard_error is None:
        return jnp.array(False)
    return norm(standard_error) > _LOUD * norm(grad)
