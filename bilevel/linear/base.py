"""The contract of linear solvers: the operator that they see, and the solution that they return."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from bilevel.utils import PyTree, axpy, dtype, norm, zeros_like

Matvec = Callable[[PyTree], PyTree]


@dataclass(frozen=True)
class Operator:
    r"""An operator ``v -> H v + damping v`` on pytrees, and what some solvers need beside it.

    Solvers that need the product alone take any function instead.

    Parameters
    ----------
    product : ``v -> H v``, over all data.
    damping : ``()``, or ``None`` for none. It biases: what is solved is not ``H v = b``.
    minibatch : ``(v, key, batch_size) -> `` an unbiased estimate of ``H v``.
    support : 0/1, like ``v``: the coordinates that ``H`` maps into; ``None`` for all.
    gauss_newton : ``() -> Operator``, the same with the Gauss-Newton matrix in place of ``H``.
    transposed : the transpose, of an operator that is not symmetric; ``None`` for one that is.
    inverse : ``v -> `` about ``H^{-1} v``, what the inner solver knows of it.
    factors : ``(key, rows) -> (vectors, penalty)`` of ``bilevel.OutputLoss.sample_curvature``.

    Examples
    --------
    >>> import bilevel as bl, jax.numpy as jnp
    >>> bl.linear.Operator(lambda v: 2 * v, damping=0.5)(jnp.ones(2))
    Array([2.5, 2.5], dtype=float32)
    """

    product: Matvec
    damping: float | Array | None = None
    minibatch: Callable[[PyTree, Array, int], PyTree] | None = None
    support: PyTree = None
    gauss_newton: "Callable[[], Operator] | None" = None
    transposed: "Operator | None" = None
    inverse: Matvec | None = None
    factors: Callable[[Array, int], tuple[PyTree, PyTree]] | None = None

    def __call__(self, v: PyTree) -> PyTree:
        """Return the damped product over all data."""
        return self._damp(self.product(v), v)

    def sample(self, v: PyTree, key: Array, batch_size: int) -> PyTree:
        """Return an unbiased estimate of the damped product, from ``batch_size`` examples."""
        if self.minibatch is None:
            raise ValueError(
                "this operator has no minibatch products, so a stochastic solver cannot use it. "
                "Pass bl.linear.Operator(product, minibatch=...), or take CG."
            )
        return self._damp(self.minibatch(v, key, batch_size), v)

    def _damp(self, image: PyTree, v: PyTree) -> PyTree:
        return image if self.damping is None else axpy(self.damping, v, image)


def as_operator(hessian: Matvec) -> Operator:
    """Return the operator itself, or one made of a plain product."""
    return hessian if isinstance(hessian, Operator) else Operator(hessian)


class Solution(NamedTuple):
    """What a linear solver found.

    ``x``, like ``b``; ``residual = |H x - b| / |b|``, ``()``, recomputed from ``x`` with the damped
    operator that was asked for; ``matvecs``, ``()``, the products used, that one included;
    ``condition``, ``()``, estimated condition number where the method knows it.
    """

    x: PyTree
    residual: Array
    matvecs: int | Array
    condition: Array | None = None


@runtime_checkable
class LinearSolver(Protocol):
    """Anything that solves ``hessian(x) = b``: one method.

    ``x0`` is the solution of the last, similar system, zero at first; ``key`` serves random
    methods. Frozen dataclasses that are registered as pytrees: tolerances leaves, counts static.
    """

    def solve(self, hessian: Matvec, b: PyTree, x0: PyTree, key: Array) -> Solution:
        """Return the solution with its true relative residual."""
        ...


def solve_scaled(
    solver: LinearSolver, hessian: Matvec, b: PyTree, x0: PyTree, key: Array
) -> Solution:
    """Return ``solver.solve`` with ``b`` brought to size one, exactly, by a power of two.

    So squares of ``b`` neither vanish nor overflow: in float32 an adjoint right side below 1e-19
    would be solved by 0, with a residual of 0. Not a bit changes where they do not.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(b)]))
    largest = jax.lax.stop_gradient(largest)
    usable = (largest > 0) & jnp.isfinite(largest)
    kind = jnp.finfo(largest.dtype)
    # Without its mantissa a number is a power of two; clipped, it rounds to neither 0 nor infinity.
    power = jax.lax.reduce_precision(jnp.clip(largest, kind.tiny, kind.max / 4), kind.nexp, 0)
    power = jnp.where(usable, power, 1)

    def shrink(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x / power.astype(x.dtype), tree)

    def solve(_: Matvec, b: PyTree) -> tuple[PyTree, Solution]:
        found = solver.solve(hessian, b, shrink(x0), key)
        return found.x, found._replace(x=None)

    transposed = getattr(hessian, "transposed", None)

    def solve_transposed(_: Matvec, b: PyTree) -> tuple[PyTree, Solution]:
        assert transposed is not None
        found = solver.solve(transposed, b, zeros_like(b), key)
        return found.x, found._replace(x=None)

    # Differentiated as a solution, in either mode: a loop that stops by itself has no reverse mode.
    system = partial(jax.lax.custom_linear_solve, hessian, shrink(b), solve, has_aux=True)
    if transposed is None:
        x, found = system(symmetric=True)
    else:
        x, found = system(transpose_solve=solve_transposed)
    return found._replace(x=jax.tree.map(lambda x: x * power.astype(x.dtype), x))


def relative_residual(hessian: Matvec, b: PyTree, x: PyTree) -> Array:
    """Return ``|hessian(x) - b| / |b|``, 0 where both vanish; costs one product."""
    return relative_norm(axpy(-1, hessian(x), b), b)


def relative_norm(r: PyTree, b: PyTree) -> Array:
    """Return ``|r| / |b|``, 0 where both vanish."""
    error = norm(r)
    return jnp.where(error == 0, 0, error / norm(b))


def warm_start(hessian: Matvec, b: PyTree, x0: PyTree) -> tuple[PyTree, PyTree, Array]:
    """Return ``(x0, b - hessian(x0), products used)``; where ``b`` is 0, x0 is replaced by 0."""
    x0 = jax.tree.map(lambda x: jnp.where(norm(b) == 0, 0, x), x0)
    cold = norm(x0) == 0
    r = jax.lax.cond(cold, lambda: b, lambda: axpy(-1, hessian(x0), b))
    return x0, r, jnp.where(cold, 0, 1).astype(jnp.int32)


def attainable_residual(tol: float | Array, b: PyTree) -> Array:
    """Return the residual norm to stop at: ``tol |b|``, but not below the rounding of the dtype."""
    return jnp.maximum(tol, 2 * jnp.finfo(dtype(b)).eps) * norm(b)


def divide_by_norm(v: PyTree, size: Array) -> PyTree:
    """Return ``v / size``, or ``v`` where ``size`` is 0."""
    return jax.tree.map(lambda x: (x / jnp.where(size > 0, size, 1)).astype(x.dtype), v)
