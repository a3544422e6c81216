"""Jobs that differ in numbers only, stacked: one compiled program takes all of them further."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevel as bl
from experiments.common.errors import BadInputError
from experiments.runs.job import Job, refuse_together
from experiments.runs.trajectory import Trajectory

PyTree = Any


class Stack:
    """`jobs` side by side under `vmap`; numbers that all of them share are kept once.

    Raises
    ------
    BadInputError : the jobs differ in more than numbers.
    """

    def __init__(self, jobs: list[Job]) -> None:
        first = jobs[0]
        single = first.settings["starts"] > 1 or first.settings["adaptive"]
        if single or first.settings["early_stopping"] is not None:
            raise BadInputError(
                "vmap: starts, early_stopping and adaptive belong to single runs. "
                "Make a sweep: -m 'seed=...'"
            )
        refuse_together(first.task, ["vmap"])
        leaves, structures = zip(*(jax.tree.flatten(_parts(job)) for job in jobs), strict=True)
        for job, structure, own in zip(jobs, structures, leaves, strict=True):
            alike = structure == structures[0] and job.task.problem == first.task.problem
            shapes = [(x.shape, x.dtype) for x in own], [(x.shape, x.dtype) for x in leaves[0]]
            if not alike or shapes[0] != shapes[1]:
                raise BadInputError(
                    "vmap: the runs are not the same program (another number of steps, another "
                    "noun, data of another size). Make a sweep of them: -m SETTING=VALUE,VALUE"
                )
        columns = list(zip(*leaves, strict=True))
        # The last leaf, the key, differs in any case: vmap needs one that does.
        split = [i == len(columns) - 1 or not _equal(column) for i, column in enumerate(columns)]
        self.size = len(jobs)
        self.numbers = [jnp.stack(c) if s else c[0] for c, s in zip(columns, split, strict=True)]
        axes = [0 if s else None for s in split]
        every, warm_start = first.settings["every"], first.settings["warm_start"]
        problem, structure = first.task.problem, structures[0]

        def loop(numbers: list[Any]) -> tuple[Any, ...]:
            parts = structure.unflatten(numbers)
            estimator, outer, hyper, params, data, ending, limit, key = parts
            hooks, divergence = (bl.Record(Trajectory()), *ending), bl.Divergence(limit)
            made = bl.Loop(problem, estimator, outer, data, hooks, divergence, warm_start)
            return made, (hyper, params, key)

        def compared(parts: PyTree, result: bl.Result) -> bl.Result:
            made = loop(jax.tree.leaves(parts))[0]
            return bl.extend.compare_points(made, result, _run, every)

        def start(numbers: list[Any]) -> Any:
            made, begin = loop(numbers)
            return made.init(*begin)

        def advance(numbers: list[Any], state: Any, count: Any) -> Any:
            return loop(numbers)[0].run(state, count, length=every)

        def last(numbers: list[Any], state: Any, diverged: Any) -> Any:
            return loop(numbers)[0].final(state, diverged)

        self.compared = compared
        self.begin: Callable[..., Any] = jax.jit(jax.vmap(start, in_axes=(axes,)))
        self.block: Callable[..., Any] = jax.jit(jax.vmap(advance, in_axes=(axes, 0, None)))
        self.final: Callable[..., Any] = jax.jit(jax.vmap(last, in_axes=(axes, 0, 0)))

    def template(self) -> PyTree:
        """Structure, shapes and dtypes of the stacked state."""
        return jax.eval_shape(self.begin, self.numbers)

    def settled(self, job: Job, result: bl.Result) -> bl.Result:
        """Return the result with the better of its last point and the best on record."""
        return self.compared(_parts(job), result)

    def results(self, state: Any, diverged: np.ndarray) -> list[bl.Result]:
        """Of every job, without its history."""
        hyper = self.final(self.numbers, state, jnp.asarray(diverged))

        def one(i: int) -> bl.Result:
            own, final = pick((state, hyper), i)
            return bl.Result(
                final, own.lower.params, {}, own.estimate, own, jnp.asarray(diverged[i])
            )

        return [one(i) for i in range(self.size)]


_run = jax.jit(bl.Loop.run, static_argnames="length")


@jax.jit
def pick(tree: PyTree, i: Any) -> PyTree:
    """Entry `i` of every leaf; compiled once for all `i`."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def convergence_of(job: Job) -> tuple[bl.Convergence, ...]:
    """Return what ends the run before its steps, if anything does."""
    return tuple(hook for hook in job.hooks if isinstance(hook, bl.Convergence))


def _parts(job: Job) -> PyTree:
    """All that a program needs to know of a job, as arrays; the key comes last."""
    task = job.task
    limit = np.asarray(job.settings["limit"], jnp.result_type(*jax.tree.leaves(task.hyper)))
    outer, ending = bl.extend.as_pytree("tune", job.outer), convergence_of(job)
    numbers = (job.estimator, outer, task.hyper, task.params, task.data, ending, limit)
    return (*bl.extend.strip_weak_types(numbers), job.key)


def _equal(column: tuple[Any, ...]) -> bool:
    first = np.asarray(column[0])
    return all(np.array_equal(first, np.asarray(other), equal_nan=True) for other in column[1:])
