"""Heavy ball that begins every inner solve at rest."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

import bilevel as bl
from bilevel.extend import Loss, PyTree, is_inexact, register_node


@dataclass(frozen=True)
class FromRest:
    """``solver``, whose momentum is forgotten where new hyperparameters change what it minimises.

    The params are still carried from call to call. In 20 steps per call a velocity that is carried
    too brings the inner model nearer to its minimum; where hyperparameters over-fit the validation
    rows, as in data cleaning, staying away from it is worth a third of a per cent of accuracy
    (``docs/tasks/cleaning.md``).

    Examples
    --------
    >>> import bilevel as bl
    >>> from tasks.solvers.from_rest import FromRest
    >>> estimator = bl.Implicit(FromRest(bl.SGD(step_size=0.1, momentum=0.9)), steps=20)
    """

    solver: bl.SGD

    def init(self, params: PyTree, data: PyTree) -> PyTree:
        """Do as the solver does."""
        return self.solver.init(params, data)

    def refresh(self, state: PyTree) -> PyTree:
        """Set velocities to 0; counts and permutations go on."""
        return jax.tree.map(lambda x: jnp.zeros_like(x) if is_inexact(x) else x, state)

    def measure(
        self, loss: Loss, params: PyTree, hyper: PyTree, data: PyTree, state: PyTree
    ) -> PyTree:
        """Do as the solver does."""
        return self.solver.measure(loss, params, hyper, data, state)

    def step(
        self, loss: Loss, params: PyTree, hyper: PyTree, data: PyTree, key: Array, state: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Do as the solver does."""
        return self.solver.step(loss, params, hyper, data, key, state)

    def max_curvature(self, hyper: PyTree, state: PyTree) -> Array:
        """Do as the solver does."""
        return self.solver.max_curvature(hyper, state)


register_node(FromRest, data_fields=["solver"], meta_fields=[])
