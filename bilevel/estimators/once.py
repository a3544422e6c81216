"""A step that keeps less where nobody differentiates it, and is right where somebody does.

Rules of differentiation in a loop keep what no step changes once, unless they are differentiated
in reverse twice, which is wrong in JAX 0.10 (:mod:`bilevel.estimators.mixed_mode`). Whether
somebody will is not known while tracing: but a rule of the whole step is called only then.
"""

from functools import partial
from typing import Protocol, runtime_checkable

import jax

from bilevel.core import Data, Estimate, InnerState, Problem
from bilevel.utils import Hyper, Key, PyTree


@runtime_checkable
class StepsOnce(Protocol):
    """An estimator whose step can do without what only second derivatives need."""

    def take(
        self, problem: Problem, hyper: Hyper, lower: InnerState, data: Data, key: Key, *, once: bool
    ) -> tuple[Estimate, InnerState]:
        """Take a step; ``once`` says that nobody differentiates its derivative again."""
        ...


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def step_once(
    problem: Problem, estimator: StepsOnce, hyper: Hyper, lower: InnerState, data: Data, key: Key
) -> tuple[Estimate, InnerState]:
    """Take a step that keeps what no step changes once; its derivative is the safe step's."""
    return estimator.take(problem, hyper, lower, data, key, once=True)


@step_once.defjvp
def _differentiate(problem: Problem, primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree]:
    def safe(estimator: StepsOnce, *rest: PyTree) -> tuple[Estimate, InnerState]:
        return estimator.take(problem, *rest, once=False)

    return jax.jvp(safe, primals, tangents)
