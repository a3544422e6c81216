"""`mesh.data=4`: the rows of both levels over several devices, by what JAX knows of shardings.

Rows lie split over the devices, hyperparameters and params whole on each. The compiler makes every
device take its rows' part of each mean and adds the parts up, so the numbers are those of one
device to rounding. A batch that is drawn from the rows is spread again, where its size allows.

With `mesh.hosts=true` several processes run the same command and take part with their devices;
only the first writes anything.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import bilevel as bl
from bilevel.core import Loss, count_examples
from experiments.common.errors import BadInputError
from tasks.base import Task

PyTree = Any
AXIS = "data"


@dataclass(frozen=True)
class Spread:
    """A loss whose batches are spread over the mesh before anything is computed of them."""

    loss: Loss
    mesh: Mesh

    def __call__(self, params: PyTree, hyper: PyTree, batch: PyTree) -> jax.Array:
        """The loss itself."""
        rows = NamedSharding(self.mesh, PartitionSpec(AXIS))

        def over(leaf: Any) -> Any:
            if not leaf.ndim or leaf.shape[0] % self.mesh.size:
                return leaf
            return jax.lax.with_sharding_constraint(leaf, rows)

        return self.loss(params, hyper, jax.tree.map(over, batch))


def join() -> bool:
    """Take part with this process's devices; whether it is the first one, which writes.

    JAX finds the others by itself under Slurm, Open MPI and Kubernetes; elsewhere the environment
    names them: `JAX_COORDINATOR_ADDRESS=HOST:PORT`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.

    Raises
    ------
    BadInputError : neither says who takes part.
    """
    if not jax.distributed.is_initialized():
        number, own = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        try:
            jax.distributed.initialize(
                num_processes=None if number is None else int(number),
                process_id=None if own is None else int(own),
            )
        except (ValueError, RuntimeError) as error:
            raise BadInputError(
                "mesh.hosts=true: nothing says which processes take part. Start the command by "
                "srun or mpirun, or set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and "
                f"JAX_PROCESS_ID in each of them. JAX says: {error}"
            ) from error
    return jax.process_index() == 0


def devices(count: int | None) -> Mesh | None:
    """The mesh of so many devices; all that there are where several processes take part.

    Raises
    ------
    BadInputError : there are not as many, or several processes and some would stay idle.
    """
    if count is None:
        return None
    present = jax.devices()
    if count > len(present) or (jax.process_count() > 1 and count < len(present)):
        raise BadInputError(
            f"mesh.data={count}: there are {len(present)} devices ({present[0].device_kind}) of "
            f"{jax.process_count()} processes; of several, all devices take part. To try it on a "
            f"CPU: XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return Mesh(np.array(present[:count]), (AXIS,))


def spread(task: Task, mesh: Mesh) -> Task:
    """The task with the rows of both levels over the mesh.

    A level whose rows the devices do not divide stays whole on each of them; the notes say so.

    Raises
    ------
    BadInputError : neither level can be divided, so that nothing would be gained.
    """
    n = mesh.size
    levels = {"inner": task.data.inner, "outer": task.data.outer}
    rows = {name: count_examples(level) for name, level in levels.items()}
    whole = [name for name in levels if rows[name] % n]
    if len(whole) == len(levels):
        raise BadInputError(
            f"mesh.data={n}: neither the {rows['inner']} inner nor the {rows['outer']} outer rows "
            f"are a multiple of {n}. Choose the sizes of the parts as numbers of rows (rows=, "
            "validation= and test= of task or task.table), or another number of devices."
        )
    spec = {name: PartitionSpec() if name in whole else PartitionSpec(AXIS) for name in levels}
    placed = {
        name: jax.device_put(level, NamedSharding(mesh, spec[name]))
        for name, level in levels.items()
    }
    data = dataclasses.replace(task.data, **placed)
    losses = {name: Spread(getattr(task.problem, name), mesh) for name in levels}
    if isinstance(task.problem.inner, bl.OutputLoss):  # Gauss-Newton takes it apart
        del losses["inner"]
    notes = dict(task.notes) | {"mesh": {"devices": n, "whole on each": whole}}
    problem = dataclasses.replace(task.problem, **losses)
    return dataclasses.replace(task, problem=problem, data=data, notes=notes)


def fetched(tree: PyTree) -> PyTree:
    """Every leaf whole in this process's memory, as a checkpoint would give it back.

    So a run goes on from the same kind of arrays whether it was stopped or not.
    """

    def fetch(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(fetch(jax.random.key_data(leaf))))
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)  # other processes' rows too
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
