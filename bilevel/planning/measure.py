"""What a plan needs to know of a problem: measured once at its solution, in float64."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.core import Problem
from bilevel.noise import ExampleLoss, FlatProblem
from bilevel.planning.analysis import call_compiled
from bilevel.planning.approach import approach_solution
from bilevel.planning.local import Examples, Local
from bilevel.planning.refusals import require_mean, require_near, require_solved
from bilevel.solvers import minimise
from bilevel.utils import PyTree, require_definite


def measure_problem(flat: FlatProblem) -> tuple[Local, Examples]:
    """Return the problem at its solution, by two compiled programs; memory m n^2 (1 + p).

    Raises
    ------
    ValueError : the inner problem is not solved by Newton's method, its Hessian at the solution
        is singular or indefinite, or gradient descent from params does not come near it.
    """
    ground = jax.tree.map(np.asarray, call_compiled(partial(_ground, flat), flat.x))
    require_solved(float(ground.decrease), float(ground.value))
    h, U = require_convex(ground.hessian)
    require_near(float(ground.delay))
    # Small dense systems, solved by NumPy: nothing to compile. v is the adjoint H^-1 l.
    D = -np.linalg.solve(ground.hessian, ground.mixed).T
    v = np.linalg.solve(ground.hessian, ground.gradient)
    found = call_compiled(partial(_derivatives, flat), (ground.x, D, v))
    examples, wholes, slope, slope_derivative, third, along = jax.tree.map(np.asarray, found)
    # All that follows is read in the eigenbasis, where the mean step is diagonal.
    # Where the targets are interpolated gradients are rounding, of this size at most.
    floor = 1e-6 * np.abs(examples.hessian).max() * (np.abs(ground.x).max() + np.abs(D).max())
    for part, whole in zip(examples, wholes, strict=True):
        require_mean(np.mean(part, 0), whole, float(np.abs(part).max() + floor))
    third = np.einsum("abc,ai,bj,ck->ijk", third, U, U, U, optimize=True)
    examples = Examples(
        U.T @ examples.hessian @ U,
        examples.gradient @ U,
        np.moveaxis(examples.derivative, 1, 0) @ U,
        U.T @ np.moveaxis(examples.coupling, 1, 0) @ U,
    )
    T, slope, v = np.mean(examples.coupling, 1), slope @ U, U.T @ v
    a = (slope - np.einsum("pab,a->pb", T, v)) / h
    local = Local(
        h=h,
        vectors=U,
        derivative=D @ U,
        coupling=T,
        gradient=U.T @ ground.gradient,
        hessian=U.T @ ground.outer_hessian @ U,
        slope=slope,
        slope_derivative=U.T @ slope_derivative @ U,
        third=third,
        cubic=np.tensordot(v, third, 1),
        shift=U.T @ along @ U + np.tensordot(a, third, 1),
        exact=D @ ground.gradient + ground.direct,
        start=U.T @ ground.near,
        delay=float(ground.delay),
        steepest=float(ground.steepest),
        solution=ground.x,
    )
    return local, examples


def measure_implicit(flat: FlatProblem, local: Local) -> Local:
    """Return the problem as the implicit hypergradient reads it: iterates only, no derivative."""

    def hypergradient(x: Array) -> Array:
        in_x, in_theta = jax.grad(flat.outer, (0, 1))(x, flat.theta)
        H, mixed = jax.jacfwd(flat.gradient, (0, 1))(x, flat.theta)
        return in_theta - mixed.T @ jnp.linalg.solve(H, in_x)

    def both(x: Array) -> tuple[Array, Array]:
        slope = jax.jacfwd(hypergradient)
        return slope(x), jax.jacfwd(slope)(x)

    slope, second = map(np.asarray, call_compiled(both, local.solution))
    slope, U = slope @ local.vectors, local.vectors
    return local._replace(
        derivative=0 * local.derivative,
        coupling=0 * local.coupling,
        gradient=0 * local.gradient,
        hessian=0 * local.hessian,
        slope=slope,
        slope_derivative=U.T @ second @ U,
        cubic=0 * local.cubic,
        shift=np.tensordot(slope / local.h, local.third, 1),
    )


def require_convex(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors of a Hessian, validated to be positive definite."""
    cure = (
        "There the iterates have no stationary law, and no theory of their noise holds: add a "
        "penalty, drop dependent features, or measure the noise with bl.Replicated."
    )
    hessian = (hessian + hessian.T) / 2
    require_definite("bl.plan", "the inner Hessian at the solution", hessian, cure)
    return np.linalg.eigh(hessian)


class _Ground(NamedTuple):
    """The solution, how it was reached, and derivatives there, in raw coordinates."""

    x: Array
    decrease: Array
    value: Array
    hessian: Array
    mixed: Array
    gradient: Array
    direct: Array
    outer_hessian: Array
    near: Array
    delay: Array
    steepest: Array


def _ground(flat: FlatProblem, first: Array) -> _Ground:
    theta = flat.theta
    solved = minimise(Problem(flat.inner, flat.inner), theta, first, flat.data)
    x = solved.params
    H, mixed = jax.jacfwd(flat.gradient, (0, 1))(x, theta)
    gradient, direct = jax.grad(flat.outer, (0, 1))(x, theta)
    steepest = jnp.linalg.eigvalsh(jax.jacfwd(flat.gradient)(first, theta))[-1]
    step = 1 / jnp.maximum(steepest, jnp.linalg.eigvalsh(H)[-1])
    near, delay = approach_solution(
        lambda x: flat.gradient(x, theta), first, x, hvp=lambda v: H @ v, step=step
    )
    return _Ground(
        x=x,
        decrease=solved.decrease,
        value=flat.inner(x, theta, flat.data.inner),
        hessian=H,
        mixed=mixed,
        gradient=gradient,
        direct=direct,
        outer_hessian=jax.jacfwd(jax.grad(flat.outer))(x, theta),
        near=near - x,
        delay=delay,
        steepest=steepest,
    )


def _derivatives(flat: FlatProblem, at: tuple[Array, Array, Array]) -> PyTree:
    """Return ``(Examples, of all data, slope, slope_derivative, third, Hessian of v . F_j)``."""
    (x, D, v), theta = at, flat.theta
    basis = jnp.eye(len(theta), dtype=theta.dtype)

    def moved(gradient: Callable[[Array, Array], Array], x: Array) -> PyTree:
        """Return ``F_j(x) = H(x) D_j + d gradient / d theta_j``, ``[p, n]``."""

        def along(D: Array, t: Array) -> Array:
            return jax.jvp(gradient, (x, theta), (D, t))[1]

        return jax.vmap(along)(D, basis)

    def one(loss: ExampleLoss) -> Examples:
        gradient = jax.grad(loss)
        hessian = jax.jacfwd(lambda x: gradient(x, theta))(x)
        coupling = jax.jacfwd(partial(moved, gradient))(x)
        return Examples(hessian, gradient(x, theta), moved(gradient, x), coupling)

    def hypergradient(x: Array) -> Array:
        in_x, in_theta = jax.grad(flat.outer, (0, 1))(x, theta)
        return D @ in_x + in_theta

    def whole(x: Array, theta: Array) -> Array:
        return flat.inner(x, theta, flat.data.inner)

    slope = jax.jacfwd(hypergradient)
    third = jax.jacfwd(jax.jacfwd(lambda x: flat.gradient(x, theta)))(x)
    along = jax.jacfwd(jax.jacfwd(lambda x: moved(flat.gradient, x) @ v))(x)
    examples = flat.map_examples(one, jnp.arange(flat.count), 256)
    return examples, one(whole), slope(x), jax.jacfwd(slope)(x), third, along
