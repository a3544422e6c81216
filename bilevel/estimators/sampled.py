r"""Many small inner problems: each call draws tasks and takes the mean of an estimator over them.

    grad = mean_t g_t,   standard_error = sd_t(g_t) / sqrt(n),   tasks t = 1 .. n drawn by the key

The stochastic outer step of meta-learning: Finn, Abbeel, Levine, ICML 2017 (MAML); Franceschi et
al., ICML 2018; Rajeswaran et al., NeurIPS 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.core import (
    Counts,
    Data,
    Estimate,
    Estimator,
    Evidence,
    InnerState,
    Problem,
    count_examples,
    init_inner_state,
    rebind_key,
)
from bilevel.estimators.residuals import find_progress
from bilevel.solvers import take_rows
from bilevel.utils import (
    Hyper,
    Key,
    Params,
    PyTree,
    norm,
    register_node,
    require_positive_int,
    strip_weak_types,
    zeros_like,
)

_T = TypeVar("_T")


def draw_row(data: Data, key: Key) -> Data:
    """Return the task that is one row of ``data``, the same row of both levels, drawn uniformly."""
    n, other = count_examples(data.inner), count_examples(data.outer)
    if n != other:
        raise ValueError(
            f"Sampled draws the same row of both levels, but data.inner has {n} tasks and "
            f"data.outer {other}. Give every leaf a leading axis of tasks, or pass "
            "draw=fn(data, key) -> bl.Data of one task."
        )
    i = jax.random.randint(key, (), 0, n)
    return jax.tree.map(lambda leaf: take_rows(leaf, i), data)


@dataclass(frozen=True)
class Sampled:
    """The mean of an estimator over ``tasks`` inner problems that each call draws anew.

    The problem is that of one task: ``params``, both losses and a batch belong to a single task,
    and ``hyper`` is what all tasks share (an initialisation, a representation, learning rates).
    ``data`` holds the pool, by default with one more leading axis on every leaf, counting tasks.

    Tasks change from call to call, so nothing is carried: every inner solve begins at
    ``problem.start(hyper, params)``, or at the ``params`` that the run began with. Returned
    ``params``, and ``inner_residual``, are those of the first task drawn; ``value``, ``grad`` and
    ``bias`` are means, ``linear_residual`` the worst, ``counts`` the sum.

    Parameters
    ----------
    estimator : any estimator.
    tasks : how many tasks a call draws, independently. For more than one ``standard_error`` is
        filled: the noise of drawing tasks, that of the inner solver included.
    draw : ``(data, key) -> Data``, one task out of the pool; ``None`` takes a row of every leaf.
        Made by a function, tasks need not be stored: episodes of classes, generated regressions.
    chunk : work on so many tasks at a time, ``None`` for all: less memory, and faster where a task
        fills the machine by itself (convolutions on a CPU).

    Raises
    ------
    ValueError : ``tasks`` or ``chunk`` below 1; levels that count different numbers of tasks.
    TypeError : a ``draw`` that returns no :class:`bilevel.Data`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, bilevel as bl
    >>> def loss(w, h, x):
    ...     return jnp.mean((w - x) ** 2) / 2
    >>> problem = bl.Problem(loss, loss, start=lambda h, w: h)  # learn where to start
    >>> data = bl.Data(inner=jnp.array([[0.0], [4.0]]), outer=jnp.array([[0.0], [4.0]]))
    >>> one = bl.Reverse(bl.GradientDescent(step_size=0.5), steps=1)
    >>> estimator = bl.Sampled(one, tasks=64)
    >>> h, w, key = jnp.array(2.0), jnp.array(0.0), jax.random.key(0)
    >>> estimate, _ = bl.hypergradient(problem, estimator, h, w, data, key)
    >>> estimate.value  # half a step from 2 leaves 1 to each task: 1^2 / 2
    Array(0.5, dtype=float32)
    """

    estimator: Estimator
    tasks: int
    draw: Callable[[Data, Array], Data] | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments."""
        require_positive_int("Sampled", "tasks", self.tasks)
        if self.chunk is not None:
            require_positive_int("Sampled", "chunk", self.chunk)
        if self.draw is not None and not callable(self.draw):
            raise TypeError(
                f"Sampled: draw must be a function (data, key) -> bl.Data of one task, got "
                f"{self.draw!r}."
            )

    def init(self, params: Params, data: Data) -> InnerState:
        """Return the params of a task, and the same again to begin every call with."""
        return init_inner_state(params, (), params)

    def first_task(self, data: Data, key: Key) -> Data:
        """Return the first of the tasks that a call with this key draws."""
        return self._task(data, self._keys(key)[0])

    def step(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key
    ) -> tuple[Estimate, InnerState]:
        """Draw tasks, take one step of the estimator on each from its beginning."""
        params = lower.memory

        def one(key: Key) -> tuple[Estimate, PyTree]:
            task = self._task(data, key)
            initial = strip_weak_types(self.estimator.init(params, task))
            at = rebind_key(problem, key)
            estimate, after = self.estimator.step(at, hyper, initial, task, key)
            return estimate, after.params

        keys = self._keys(key)
        together = jax.vmap(one) if self.chunk is None else _map(one, min(self.chunk, self.tasks))
        every, ends = together(keys)
        value, grad, bias = jax.tree.map(
            lambda x: jnp.mean(x, 0), (every.value, every.grad, every.evidence.bias)
        )
        error = None
        if self.tasks > 1:
            error = jax.tree.map(lambda x: jnp.std(x, 0, ddof=1) / self.tasks**0.5, every.grad)

        end = jax.tree.map(lambda x: x[0], ends)
        initial = params if problem.start is None else problem.start(hyper, params)
        task, unknown = self.first_task(data, key), zeros_like(lower.reference)
        residual, _ = find_progress(problem, hyper, initial, end, task, unknown)
        counts = Counts(*(jnp.sum(x, dtype=jnp.int32) for x in every.evidence.counts))
        evidence = Evidence(
            residual,
            jax.tree.map(jnp.max, every.evidence.linear_residual),
            standard_error=error,
            bias=bias,
            counts=counts,
            derivative_residual=jax.tree.map(jnp.max, every.evidence.derivative_residual),
            residual_error=_mean_error(every.evidence.residual_error, every.grad),
            not_measured=every.evidence.not_measured,
        )
        aux = jax.tree.map(lambda x: x[0], every.aux)
        return Estimate(value, grad, evidence, aux), InnerState(end, (), params, lower.reference)

    def _keys(self, key: Key) -> Array:
        return jax.random.split(key, self.tasks)

    def _task(self, data: Data, key: Key) -> Data:
        task = (self.draw or draw_row)(data, jax.random.fold_in(key, 0))
        if not isinstance(task, Data):
            raise TypeError(
                f"Sampled: draw must return the bl.Data of one task, got {type(task).__name__}."
            )
        return task


register_node(Sampled, data_fields=["estimator"], meta_fields=["tasks", "draw", "chunk"])


def _mean_error(errors: Array | None, grads: Hyper) -> Array | None:
    """Return the root mean square of relative errors, weighted by the squared gradients, ``()``.

    The error of the mean where each gradient is off by about the same factor, as with too few
    steps or damping; noise that averages out over the tasks is in it too.
    """
    if errors is None:
        return None
    sizes = jax.vmap(norm)(grads)
    share = sizes / jnp.linalg.norm(sizes)
    seen = jnp.where(share > 0, share * errors, 0)
    return jnp.where(jnp.any(sizes > 0), jnp.linalg.norm(seen), jnp.max(errors))


def _map(fn: Callable[[Key], _T], size: int) -> Callable[[Key], _T]:
    """Return ``vmap(fn)``, ``size`` entries at a time."""
    if size == 1:
        return partial(jax.lax.map, fn)
    return partial(jax.lax.map, fn, batch_size=size)
