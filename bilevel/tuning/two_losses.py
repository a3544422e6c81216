"""Two outer losses as numbers and gradients of flat coordinates, with models of their Hessians."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from bilevel.core import Data, Estimator, Problem, UserLoss, count_examples
from bilevel.estimators import EvidenceWarning, hypergradient
from bilevel.spaces import Free, Spaces
from bilevel.utils import Hyper, Key, Params, norm, strip_weak_types

Floats = NDArray[np.float64]
_FIRST = 0.5  # length of the first step


@dataclass(frozen=True)
class Tried:
    """Coordinates ``z [p]``, both ``values [2]``, ``gradients [2, p]``, what is known of errors.

    ``errors [2]`` are relative to the gradient in natural units.
    """

    z: Floats
    values: Floats
    gradients: Floats
    errors: Floats


class TwoLosses:
    """Both losses at a point, by two hypergradients of one inner solution.

    ``hessians [2, p, p]`` follow the gradients by symmetric rank-one updates (Conn, Gould, Toint,
    1991), which unlike others may be indefinite, as a Hessian may. ``seen`` has every point.
    """

    def __init__(
        self,
        problem: Problem,
        second: UserLoss,
        estimator: Estimator,
        hyper: Hyper,
        params: Params,
        data: Data,
        key: Key,
    ) -> None:
        first, rows = problem.outer, count_examples(data.outer)

        def outer(params: Params, hyper: Hyper, batch: Any, *rest: Any) -> Any:
            batch, shares = batch
            share = jnp.mean(shares)
            both = (loss(params, hyper, batch, *rest) for loss in (first, second))
            return (1 - share) * next(both) + share * next(both)

        # One number a row says how much of the second loss there is: both are one program.
        self._data = [Data(data.inner, (data.outer, jnp.full(rows, float(i)))) for i in (0, 1)]
        self._problem = replace(problem, outer=outer)
        self._estimator, self._key, self._params = estimator, key, params
        self._state: Any = None
        self._spaces = Spaces.of(Free()) if problem.space is None else problem.space
        flat, self._unravel = ravel_pytree(self._spaces.free(strip_weak_types(hyper)))
        self._dtype = flat.dtype
        self._scaled = False
        self.seen: list[Tried] = []
        begun = self._evaluate(np.asarray(flat, float))
        # So that the first step has this length, in whatever unit the losses are.
        sizes = np.maximum(np.linalg.norm(begun.gradients, axis=1), 1e-300) / _FIRST
        self.hessians: Floats = sizes[:, None, None] * np.eye(flat.size)

    def natural(self, z: Floats) -> Hyper:
        """Return coordinates in natural units, held inside the space."""
        return self._spaces.natural(self._free(z))

    def move(self, begun: Tried, step: Floats) -> Tried:
        """Return the point a step away; the Hessians learn from it."""
        point = self._evaluate(begun.z + step)
        step, change = point.z - begun.z, point.gradients - begun.gradients
        if np.all(np.isfinite(change)) and np.any(step):
            self._learn(step, change)
        return point

    def _free(self, z: Floats) -> Any:
        return self._spaces.admit(self._unravel(jnp.asarray(z, self._dtype)))

    def _evaluate(self, z: Floats) -> Tried:
        free = self._free(z)
        hyper = self._spaces.natural(free)
        values, gradients, errors = [], [], []
        for data in self._data:
            # The second begins where the first has solved the inner problem.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EvidenceWarning)  # a trial may fail
                estimate, state = hypergradient(
                    self._problem,
                    self._estimator,
                    hyper,
                    self._params,
                    data,
                    self._key,
                    state=self._state,
                )
            if bool(jnp.isfinite(norm(estimate.grad))):
                self._state = state
            values.append(float(estimate.value))
            pulled = ravel_pytree(self._spaces.pull(free, estimate.grad))[0]
            gradients.append(np.asarray(pulled, float))
            errors.append(float(estimate.relative_error))
        z = np.asarray(ravel_pytree(free)[0], float)
        point = Tried(z, np.array(values), np.stack(gradients), np.array(errors))
        self.seen.append(point)
        return point

    def _learn(self, step: Floats, change: Floats) -> None:
        for i, dg in enumerate(change):
            if not self._scaled and dg @ step > 0:
                self.hessians[i] = np.eye(len(step)) * float(dg @ dg) / float(dg @ step)
            left = dg - self.hessians[i] @ step
            along = left @ step
            if abs(along) > 1e-8 * np.linalg.norm(left) * np.linalg.norm(step):
                self.hessians[i] += np.outer(left, left) / along
        self._scaled = True


def solve_within(hessian: Floats, slope: Floats, radius: float) -> Floats:
    """Return ``argmin_d slope d + d |H| d / 2`` over ``|d| <= radius``, ``|H|`` positive definite.

    The absolute value of ``H`` by its eigenvalues: a direction of negative curvature is followed
    downhill (Gill, Murray, Wright, Practical optimization, 1981, section 4.4).
    """
    values, vectors = np.linalg.eigh(hessian)
    curvature = np.maximum(np.abs(values), max(1e-10 * np.abs(values).max(), 1e-300))
    pulled = vectors.T @ slope

    def step(damping: float) -> Floats:
        return -vectors @ (pulled / (curvature + damping))

    if np.linalg.norm(step(0.0)) <= radius:
        return step(0.0)
    low, high = 0.0, float(np.linalg.norm(pulled)) / radius
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(step(middle)) > radius else (low, middle)
    return step(high)
