"""No step size and no choice: a quasi-Newton search while the values behave, then steps for noise.

It begins as :class:`LBFGS` (``trust_region.py``). Each trial is asked whether its value could be
explained by the slopes at both ends. A rejection that could not, or a standard error of half the
hypergradient, is evidence of noise; at three in a row the values do not decide any more, and the
run goes on from the best accepted point as :class:`DoG` (``dog.py``), in the metric that the search
has found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevel.outer.base import flat_admit, flatten
from bilevel.outer.dog import DoGState, init_dog, take_step, update_average
from bilevel.outer.trust_region import (
    AdmitVector,
    TrustRegionState,
    best_point,
    compute_scales,
    init_trust_region,
    judge_trial,
    limit_step,
    propose_trial,
    shorten_refused,
)
from bilevel.utils import PyTree, norm, register_node, require_positive_int

_MEMORY, _ENOUGH = 0.7, 2.0  # evidence of noise fades, and suffices
_STUCK = 8  # rejections in a row that no smooth function causes
_DOMINATES = 0.5  # standard error over hypergradient


class AutoState(NamedTuple):
    """The state of the search, that of DoG once the values are ``noisy``, and how much says so."""

    search: TrustRegionState
    dog: DoGState
    noisy: Array
    noise_evidence: Array


@dataclass(frozen=True)
class Auto:
    """An outer rule without a step size, for hypergradients with noise and without.

    While value and hypergradient agree, it is :class:`LBFGS`: accepted values never rise, trials
    where the inner solver diverges are taken back and tried shorter. When they cease to, it goes
    on by :class:`DoG` from the best accepted point.

    A run ends with the best accepted point, as long as the values agree. After that,
    ``result.state.outer.noisy`` is true, and it ends with DoG's average, unless the values
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
        """Validate the number of curvature pairs."""
        require_positive_int("Auto", "memory", self.memory)

    def init(self, params: PyTree) -> AutoState:
        """Return the state of a search that knows nothing yet."""
        flat = ravel_pytree(params)[0]
        search, dog = init_trust_region(flat, self.memory), init_dog(flat, 0.0)
        return AutoState(search, dog, jnp.array(False), jnp.zeros((), flat.dtype))

    def update(
        self,
        updates: PyTree,
        state: AutoState,
        params: PyTree = None,
        *,
        value: float | Array | None = None,
        standard_error: PyTree = None,
        admit: Callable[[PyTree], PyTree] | None = None,
        **_: Any,
    ) -> tuple[PyTree, AutoState]:
        """Go from the evaluation at ``params`` to the next trial or step."""
        x, slope, value, back = flatten("Auto", updates, params, value)
        dominated = noise_dominates(updates, standard_error)
        following, state = jax.lax.cond(
            state.noisy,
            lambda: _step_by_dog(state, x, value, slope),
            lambda: _step_by_search(state, x, value, slope, dominated, flat_admit(admit, back)),
        )
        return back(following - x), state

    def best(self, state: AutoState, hyper: PyTree, value: Array) -> tuple[PyTree, Array]:
        """Return what a run ends with, the last evaluation included, and its value."""
        flat, back = ravel_pytree(hyper)
        search, dog = state.search, update_average(state.dog, flat, value.astype(flat.dtype))
        fallen = dog.mean_value <= search.value + 2 * dog.spread
        averaged = (
            back(jnp.where(fallen, dog.average, search.base)),
            jnp.where(fallen, dog.mean_value, search.value).astype(value.dtype),
        )
        searched = best_point(search, hyper, value)
        return jax.tree.map(lambda a, b: jnp.where(state.noisy, a, b), averaged, searched)

    def backtrack(
        self, before: AutoState, after: AutoState, hyper: PyTree
    ) -> tuple[AutoState, Array]:
        """Return the state that proposes a quarter of the refused step, and whether it may."""
        origin = jnp.where(after.noisy, after.dog.x, after.search.base)
        length = jnp.linalg.norm(ravel_pytree(hyper)[0] - origin)
        search, can_retry = shorten_refused(before.search, length)
        return before._replace(search=search), can_retry


register_node(Auto, data_fields=[], meta_fields=["memory"])


def noise_dominates(grad: PyTree, standard_error: PyTree) -> Array:
    """Return whether the hypergradient is known to be little more than noise."""
    if standard_error is None:
        return jnp.array(False)
    return norm(standard_error) > _DOMINATES * norm(grad)


def _step_by_search(
    state: AutoState,
    x: Array,
    value: Array,
    slope: Array,
    dominated: Array,
    admit: AdmitVector | None,
) -> tuple[Array, AutoState]:
    """Judge the trial; propose another, or begin with DoG from the best accepted point."""
    search, verdict = judge_trial(state.search, x, value, slope)
    inconsistent = (verdict.violates_slopes & ~verdict.accepted) | dominated
    evidence = _MEMORY * state.noise_evidence + inconsistent
    noisy = (evidence >= _ENOUGH) | (search.rejections >= _STUCK)
    dog = init_dog(search.base, search.accepted_length)
    begun = AutoState(search, dog, jnp.array(True), evidence)
    stepped = _step_by_dog(begun, search.base, search.value, search.slope)
    following, search = propose_trial(search, admit)
    searched = following, AutoState(search, state.dog, jnp.array(False), evidence)
    return jax.tree.map(lambda a, b: jnp.where(noisy, a, b), stepped, searched)


def _step_by_dog(state: AutoState, x: Array, value: Array, slope: Array) -> tuple[Array, AutoState]:
    """Take one step of DoG, no longer than allowed; where the value is not finite, go back.

    The next step is then half as long.
    """
    search, dog = state.search, state.dog
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
    x, value = jnp.where(finite, x, dog.x), jnp.where(finite, value, dog.mean_value)
    slope = jnp.where(finite, slope, 0)
    distance = jnp.where(finite, dog.max_distance, dog.max_distance / 2)
    dog = dog._replace(max_distance=distance)
    step, dog = take_step(dog, x, value, slope, compute_scales(search))
    shorter, search = limit_step(search, step)
    return x + shorter, state._replace(search=search, dog=dog)
